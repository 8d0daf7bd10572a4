package admin

import "time"

// Info is the answer of GET /v1/info: the daemon, its pool and its snapshots.
type Info struct {
	Daemon     Daemon         `json:"daemon"`
	Client     ClientInfo     `json:"client"`  // the default client
	Clients    []ClientInfo   `json:"clients"` // the further clients, configured or with snapshots
	Pool       Pool           `json:"pool"`
	Filesystem Filesystem     `json:"filesystem"`
	Snapshots  SnapshotCounts `json:"snapshots"`
	Devices    Volumes        `json:"volumes"`
	Spares     Spares         `json:"spares"`
	Background Background     `json:"background"`
	Store      Store          `json:"store"`
	Differ     Differ         `json:"differ"`
	Driver     Driver         `json:"driver"`
}

// Daemon describes the process. The server fills it in, not the Backend.
type Daemon struct {
	Version       string    `json:"version"`
	Revision      string    `json:"revision,omitempty"` // of the source
	Root          string    `json:"root"`
	Address       string    `json:"address"` // the socket for containerd
	PID           int       `json:"pid"`
	StartedAt     time.Time `json:"started_at"`
	UptimeSeconds int64     `json:"uptime_seconds"`
}

// ClientInfo describes a client, which has its own socket and snapshots, and the client's process. It is the
// answer of POST /v1/client/accept?client=NAME and POST /v1/client/reset?client=NAME. Without NAME it is the
// default client.
type ClientInfo struct {
	Name    string `json:"name"`              // "default" for the default client
	Address string `json:"address,omitempty"` // thinsnap's socket for it
	// Configured is false for a client that was removed from the configuration. Its snapshots stay.
	Configured   bool           `json:"configured"`
	Snapshots    SnapshotCounts `json:"snapshots"`
	Proxy        string         `json:"proxy,omitempty"` // the name of the proxy plugin
	PID          int            `json:"pid"`             // of the client's process; 0 without one, or if thinsnap cannot see it
	Program      string         `json:"program,omitempty"`
	Installation string         `json:"installation,omitempty"` // the id in the client's data: containerd's UUID, or that of BuildKit's worker
	Since        time.Time      `json:"recorded_at,omitzero"`   // when the process became the client
	Alive        bool           `json:"alive"`
	// Unseen is true if the client's process is in a PID namespace that thinsnap cannot see. Then a
	// second process is not refused, and a containerd that lost its data can remove all snapshots.
	Unseen bool `json:"unseen"`
	// KeptSnapshots is the number of snapshots of earlier clients that the present one cannot remove.
	KeptSnapshots uint64 `json:"kept_snapshots"`
	RefusedCalls  uint64 `json:"refused_calls"`          // since the daemon's start, because of another process or proxy name
	LastRefused   string `json:"last_refused,omitempty"` // the process and proxy name of the last refused call
}

// RemovedClient is the answer of POST /v1/client/remove?client=NAME.
type RemovedClient struct {
	Name      string `json:"name"`
	Snapshots uint64 `json:"snapshots"` // removed snapshots
}

// The states of a pool, as in its status line.
const (
	StateReadWrite      = "rw"
	StateReadOnly       = "ro"
	StateOutOfDataSpace = "out_of_data_space"
	StateFailed         = "fail"
)

// Pool is the answer of GET /v1/pool.
type Pool struct {
	Name       string `json:"name"`           // of the mapped device
	UUID       string `json:"uuid,omitempty"` // of the mapped device
	Mode       string `json:"mode"`           // "loop", "direct-lvm" or "existing"
	State      string `json:"state"`          // "rw", "ro", "out_of_data_space" or "fail", as in the kernel's status
	NeedsCheck bool   `json:"needs_check"`    // the kernel has marked the metadata needs_check
	// Refusal is why new snapshots are refused at present, with the remedy.
	Refusal       string `json:"refusal,omitempty"`
	TransactionID uint64 `json:"transaction_id"`
	BlockSize     uint64 `json:"block_size_bytes"`
	Data          Space  `json:"data"`
	Metadata      Space  `json:"metadata"`
	// Overpromised is the space of the pool that is neither allocated nor free on the disk below it.
	Overpromised uint64 `json:"overpromised_bytes"`
	// NotAllocated is why the pool's files are not allocated.
	NotAllocated string `json:"not_allocated,omitempty"`
	// Events is the number of device-mapper events since the daemon's start, at most one a second.
	Events     uint64     `json:"events"`
	Autoextend Autoextend `json:"autoextend"`
}

// Autoextend describes the automatic extension of the pool. Its counters start with the daemon.
type Autoextend struct {
	Threshold uint64 `json:"threshold_percent"` // used percentage at which the pool is extended; 100: never
	Percent   uint64 `json:"step_percent"`      // size of an extension, in percent of the present size
	DataLimit uint64 `json:"data_limit_bytes"`  // size up to which the data is extended; 0: no limit
	// DataExtensions is the number of extensions of the data since the daemon's start, automatic or not.
	DataExtensions     uint64 `json:"data_extensions"`
	MetadataExtensions uint64 `json:"metadata_extensions"` // the same for the metadata
	Stuck              string `json:"stuck,omitempty"`     // why the pool cannot grow although it should
}

// Extension has the parameters data_bytes and metadata_bytes of POST /v1/pool/extend: the new sizes of the pool
// in bytes. 0 keeps the present size.
type Extension struct{ Data, Metadata uint64 }

// Trimming is the answer of POST /v1/pool/trim?key=KEY, for a mounted active snapshot.
type Trimming struct {
	Key      string `json:"key"`
	DeviceID uint32 `json:"device_id"`
	// Trimmed is the free space that the file system discarded. It includes space that the volume never
	// mapped. ext4 leaves out space that was discarded before.
	Trimmed uint64 `json:"trimmed_bytes"`
	// Unmapped is the space that the volume no longer maps. Blocks that other snapshots share stay in use.
	Unmapped uint64 `json:"unmapped_bytes"`
	Stopped  string `json:"stopped,omitempty"` // why it ended early: the snapshot was committed, removed or unmounted
}

// Fork is the answer of POST /v1/fork?key=KEY. A Prepare with the label gets the content that the snapshot KEY has at
// that moment.
type Fork struct {
	Token     string    `json:"token"`      // the label's value, for one Prepare
	Label     string    `json:"label"`      // the label's name
	ExpiresAt time.Time `json:"expires_at"` // the Prepare must begin before this time
	// Snapshotter is the name of thinsnap's proxy plugin in containerd.
	Snapshotter string `json:"snapshotter"`
}

// LeftoverList is the answer of GET /v1/leftovers, and of POST /v1/leftovers/remove?device_id=ID,
// which removes the volume and returns the others.
type LeftoverList struct {
	Leftovers []Leftover `json:"leftovers"` // sorted by id
}

// Leftover is a volume that is kept because a client may have written to it, but the store has no snapshot of it: the
// store is older than the pool, or the volume was adopted without a snapshot.
type Leftover struct {
	DeviceID uint32    `json:"device_id"`
	Mapped   uint64    `json:"mapped_bytes"` // the bytes that the volume maps
	Size     uint64    `json:"size_bytes"`   // the end of its last mapped block
	Found    time.Time `json:"found_at"`
}

// The levels of a space, by the available share of the used and available bytes.
const (
	LevelOK    = "ok"
	LevelLow   = "low"   // less than a fifth is available
	LevelShort = "short" // new snapshots are refused
)

// Space is one of the pool's two devices.
type Space struct {
	Device   string `json:"device"`              // such as /dev/loop0
	LoopFile string `json:"loop_file,omitempty"` // the file behind a loop device
	Used     uint64 `json:"used_bytes"`
	Total    uint64 `json:"size_bytes"`
	// Available is the free space, less the holes in the loop file that the disk cannot fill.
	Available uint64 `json:"available_bytes"`
	Holes     uint64 `json:"holes_bytes"`     // the part of the size that a loop file has not allocated
	MinFree   uint64 `json:"min_free_bytes"`  // new snapshots are refused while less is available; 0: no limit
	LowWater  uint64 `json:"low_water_bytes"` // the kernel raises an event when less is free; 0: never
	Level     string `json:"level"`           // "ok"; "low": less than a fifth is available; "short": new snapshots are refused
}

// LevelOf returns the level of a space, from its Used, Available and MinFree.
func LevelOf(s Space) string {
	switch {
	case s.Available < s.MinFree, s.Available == 0:
		return LevelShort
	case s.Available < (s.Used+s.Available)/5:
		return LevelLow
	default:
		return LevelOK
	}
}

// Filesystem describes the base volume, the origin of every snapshot without a parent.
type Filesystem struct {
	Type     string `json:"type"`
	BaseSize uint64 `json:"base_size_bytes"`
	BaseUUID string `json:"base_uuid,omitempty"` // absent until the base volume exists
}

// SnapshotCounts counts the snapshots by kind.
type SnapshotCounts struct {
	Active    uint64 `json:"active"`
	View      uint64 `json:"view"`
	Committed uint64 `json:"committed"`
}

// Volumes counts the volumes, by state.
type Volumes struct {
	Active uint64 `json:"active"` // volumes with a mapped device
	Spares uint64 `json:"spare"`  // the spares among them
	Frozen uint64 `json:"frozen"` // the frozen copies among them
	// Trash is the number of volumes of removed snapshots that are not deleted yet. Docker calls them
	// deferred deleted devices.
	Trash uint64 `json:"trash"`
	// Kept is the number of kept leftovers, as in GET /v1/leftovers.
	Kept uint64 `json:"kept"`
	// WritesLost is the number of active snapshots whose volumes may have lost writes. They can be neither committed
	// nor forked.
	WritesLost uint64 `json:"writes_lost"`
	IDsUsed    uint64 `json:"ids_used"` // device ids that were ever used; each is used only once
	IDsLeft    uint64 `json:"ids_left"`
	// SnapshotsLeft is the number of snapshots that all users of the pool can create until new ones are refused
	// because of the pool's time.
	SnapshotsLeft uint64 `json:"snapshots_left"`
}

// Spares counts the snapshots prepared since the daemon's start.
type Spares struct {
	Hits   uint64 `json:"hits"`   // snapshots that took a spare, since the daemon's start
	Misses uint64 `json:"misses"` // snapshots that found no spare
}

// Background counts the volumes to be settled in the background: checked, deactivated or deleted.
type Background struct {
	Running  uint64 `json:"running"`  // volumes that are being settled
	Waiting  uint64 `json:"waiting"`  // volumes in the queue
	Deferred uint64 `json:"deferred"` // volumes to be retried, mostly because they are in use
	// DeferredRemovals is the number of mapped devices that could not be removed. They are retried.
	DeferredRemovals uint64 `json:"deferred_removals"`
	// DeferredDeletions is the number of volumes, in the trash or leftovers of a crash, that could not be deleted.
	// They are retried.
	DeferredDeletions uint64 `json:"deferred_deletions"`
}

// Store has the store's counters since the daemon's start.
type Store struct {
	Operations    uint64  `json:"operations"`     // operations that changed the store, since the daemon's start
	Transactions  uint64  `json:"transactions"`   // committed transactions; operations share them
	Reads         uint64  `json:"reads"`          // read transactions
	CommitSeconds float64 `json:"commit_seconds"` // time until the transactions were on stable storage
	Bytes         uint64  `json:"size_bytes"`     // size of the store's file
}

// Differ counts the comparisons of snapshots for containerd since the daemon's start.
type Differ struct {
	Running   uint64 `json:"running"`   // comparisons that run
	Inodes    uint64 `json:"inodes"`    // layers made from the changed inodes of an ext4
	Walked    uint64 `json:"walked"`    // layers made by a walk
	Left      uint64 `json:"left"`      // comparisons left to containerd's next differ
	Failed    uint64 `json:"failed"`    // comparisons that failed while the layer was written, or because of lost writes
	Cancelled uint64 `json:"cancelled"` // comparisons that the caller gave up
	// Mismatched is the number of comparisons left because diff.verify found a difference.
	Mismatched uint64 `json:"mismatched"`
	Changed    uint64 `json:"changed_bytes"` // bytes that only one volume maps, or that both map to different blocks
	Read       uint64 `json:"read_bytes"`    // bytes of files that were read to compare them
	Written    uint64 `json:"written_bytes"` // bytes of layers, before compression
}

// Driver describes the kernel's device-mapper and how it is used.
type Driver struct {
	Version          string `json:"version"` // of the device-mapper ioctls, such as "ioctl 4.47.0"
	UdevSync         bool   `json:"udev_sync"`
	DeferredRemoval  bool   `json:"deferred_removal"`
	DeferredDeletion bool   `json:"deferred_deletion"`
}

// The kinds of snapshots, as containerd names them.
const (
	KindActive    = "active"
	KindView      = "view"
	KindCommitted = "committed"
)

// SnapshotList is the answer of GET /v1/snapshots.
type SnapshotList struct {
	Snapshots []Snapshot `json:"snapshots"` // sorted by key
}

// Snapshot is one entry of a SnapshotList.
type Snapshot struct {
	// Key is the client's key: with "@CLIENT/" before it for a further client, and with "@/" before it if a key of
	// the default client begins with "@".
	Key      string `json:"key"`
	Client   string `json:"client"`           // the client's name
	Kind     string `json:"kind"`             // "active", "view" or "committed"
	Parent   string `json:"parent,omitempty"` // the key of a committed snapshot
	DeviceID uint32 `json:"device_id"`        // of the volume; a view has the id of its parent
	Size     uint64 `json:"size_bytes"`       // of the volume
	// Used is the usage: the bytes that the snapshot maps and its parent does not map to the same blocks of the
	// pool.
	Used *uint64 `json:"used_bytes,omitempty"`
	// Shared is the rest of the mapped bytes.
	Shared *uint64 `json:"shared_bytes,omitempty"`
	// Exclusive is the bytes that the pool gets back when the snapshot is removed. In a list of many
	// snapshots it may be older than the rest.
	Exclusive *uint64 `json:"exclusive_bytes,omitempty"`
	Kept      bool    `json:"kept,omitempty"` // the snapshot is of an earlier client, and the present one cannot remove it
	// WritesLost is true for an active snapshot that may have lost writes. It can be neither committed nor forked.
	WritesLost bool              `json:"writes_lost,omitempty"`
	Created    time.Time         `json:"created_at"`
	Updated    time.Time         `json:"updated_at"`
	Labels     map[string]string `json:"labels,omitempty"` // omitted if the request has labels=no
}

// Inspection is the answer of GET /v1/inspect?key=KEY.
type Inspection struct {
	Snapshot
	// Chain has the keys of the ancestors, from the parent to the root.
	Chain []string `json:"chain"`
	// MappedBytes is the bytes that the volume maps, shared or not.
	MappedBytes *uint64 `json:"mapped_bytes,omitempty"`
	// Device is the volume's mapped device, with all devices below it.
	Device Device `json:"device"`
}

// Difference is the answer of GET /v1/diff?key=KEY.
type Difference struct {
	Key    string `json:"key"`
	Parent string `json:"parent,omitempty"`
	// Changes are sorted by path. A deleted directory stands for its whole content. A directory is listed if
	// anything in it changed.
	Changes []Change `json:"changes"`
	Level   string   `json:"level"`         // how they were found: from the changed "inodes" of an ext4, or by a "walk"
	Changed uint64   `json:"changed_bytes"` // bytes that only one volume maps, or that both map to different blocks
	Read    uint64   `json:"read_bytes"`    // bytes of files that were read to compare them
}

// The kinds of changes.
const (
	ChangeAdded   = "added"
	ChangeChanged = "changed"
	ChangeDeleted = "deleted"
)

// Change is a path that differs.
type Change struct {
	Kind string `json:"kind"` // "added", "changed" or "deleted"
	Path string `json:"path"`
	// PathBytes is the path if it is not UTF-8.
	PathBytes []byte `json:"path_base64,omitempty"`
}

// Activity is the answer of GET /v1/activity.
type Activity struct {
	// Running are containerd's running calls, the oldest first: at most 100 of the RunningTotal.
	Running      []RunningCall `json:"running"`
	RunningTotal uint64        `json:"running_total"`
	// Recent are the last ended calls that changed something or failed, the latest first.
	Recent []EndedCall `json:"recent"`
	// Totals are the counts of all ended calls since the daemon's start, sorted by method.
	Totals []CallTotal `json:"totals"`
	// Trash has removed snapshots whose volumes are not deleted yet: at most 100 of the TrashTotal.
	Trash      []Removed `json:"trash"`
	TrashTotal uint64    `json:"trash_total"`
}

// RunningCall is a call that has not ended.
type RunningCall struct {
	Method    string    `json:"method"`
	Client    string    `json:"client"`        // the client's name
	Key       string    `json:"key,omitempty"` // the snapshot's key, as in Snapshot; shortened if it is very long
	StartedAt time.Time `json:"started_at"`
}

// EndedCall is a call that has ended.
type EndedCall struct {
	RunningCall
	Seconds float64 `json:"duration_seconds"`
	Outcome string  `json:"outcome"` // the name of the gRPC code
}

// CallTotal sums up the calls of one method.
type CallTotal struct {
	Method  string  `json:"method"`
	Ended   uint64  `json:"ended"`
	Failed  uint64  `json:"failed"`           // calls with an outcome other than OK, NotFound, AlreadyExists, Canceled and Unimplemented
	Seconds float64 `json:"duration_seconds"` // the sum of their durations
}

// Removed is a snapshot that is removed for its clients, but whose volume still exists.
type Removed struct {
	Key      string    `json:"key"`    // the snapshot's former key
	Client   string    `json:"client"` // the client's name
	DeviceID uint32    `json:"device_id"`
	Since    time.Time `json:"removed_at"`
}

// History is the answer of GET /v1/history: the fill of the pool since the daemon's start, the
// oldest point first.
type History struct {
	Points []Fill `json:"points"`
}

// Fill is the fill of the pool at one time.
type Fill struct {
	At            time.Time `json:"at"`
	DataUsed      uint64    `json:"data_used_bytes"`      // the maximum since the previous point
	MetadataUsed  uint64    `json:"metadata_used_bytes"`  // the same
	DataAvailable uint64    `json:"data_available_bytes"` // as in Space
	DataTotal     uint64    `json:"data_size_bytes"`
	MetadataTotal uint64    `json:"metadata_size_bytes"`
}

// The roles of the devices between a snapshot and the disk.
const (
	RoleThin     = "thin"
	RolePool     = "pool"
	RoleData     = "data"
	RoleMetadata = "metadata"
	RoleFile     = "file"
	RoleDisk     = "disk"
)

// Device is a block device, or the file at the bottom of the stack.
type Device struct {
	Role      string   `json:"role"`             // "thin", "pool", "data", "metadata", "file" or "disk"
	Name      string   `json:"name,omitempty"`   // device-mapper's name, for a mapped device
	UUID      string   `json:"uuid,omitempty"`   // device-mapper's UUID, for a mapped device
	Number    string   `json:"number,omitempty"` // "MAJOR:MINOR", not for files and inactive volumes
	Path      string   `json:"path,omitempty"`
	Active    bool     `json:"active"` // only volumes can be inactive
	ReadOnly  bool     `json:"read_only"`
	Suspended bool     `json:"suspended"`
	OpenCount int      `json:"open_count"`       // of a mapped device
	Table     []string `json:"table,omitempty"`  // "START LENGTH TYPE PARAMETERS" in sectors of 512 bytes
	Status    []string `json:"status,omitempty"` // in the same form
	Below     []Device `json:"below,omitempty"`
}

// problem is the body of an error answer. The HTTP status is the class of the error.
type problem struct {
	Message     string `json:"message"`
	PoolNotOpen bool   `json:"pool_not_open,omitempty"` // the error is ErrNotOpen
}
