// Package admin is the daemon's second socket, for its operator: what it is doing and with which devices, as JSON over
// HTTP, with metrics and profiles beside it. The types in this file are that interface: names of fields stay, and new ones
// may come. All sizes are in bytes.
package admin

import "time"

// Info is the answer of GET /v1/info: the daemon, its pool and what is in it.
type Info struct {
	Daemon     Daemon         `json:"daemon"`
	Pool       Pool           `json:"pool"`
	Filesystem Filesystem     `json:"filesystem"`
	Snapshots  SnapshotCounts `json:"snapshots"`
	Devices    Devices        `json:"devices"`
	Spares     Spares         `json:"spares"`
	Background Background     `json:"background"`
	Store      Store          `json:"store"`
	Driver     Driver         `json:"driver"`
}

// Daemon describes the process. The server fills it in; a Backend leaves it alone.
type Daemon struct {
	Version       string    `json:"version"`
	Revision      string    `json:"revision,omitempty"` // of the source; absent if it was built without
	Root          string    `json:"root"`
	Address       string    `json:"address"` // containerd's socket
	PID           int       `json:"pid"`
	StartedAt     time.Time `json:"started_at"`
	UptimeSeconds int64     `json:"uptime_seconds"`
}

// The states that a pool can be in, as its status line has them.
const (
	StateReadWrite      = "rw"
	StateReadOnly       = "ro"
	StateOutOfDataSpace = "out_of_data_space"
	StateFailed         = "fail"
)

// Pool is the answer of GET /v1/pool.
type Pool struct {
	Name          string `json:"name"`           // of the mapped device
	UUID          string `json:"uuid,omitempty"` // of the mapped device
	Mode          string `json:"mode"`           // as the configuration names it
	State         string `json:"state"`          // one of the State constants
	NeedsCheck    bool   `json:"needs_check"`    // the kernel asks for thin_check
	TransactionID uint64 `json:"transaction_id"`
	BlockSize     uint64 `json:"block_size"`
	Data          Space  `json:"data"`
	Metadata      Space  `json:"metadata"`
	MinFreeSpace  uint64 `json:"min_free_space"` // that of the data; see Space.MinFree
	// Events counts how often the kernel has told the daemon that something happened to a device, since the daemon
	// started, and once a second at most.
	Events     uint64     `json:"events"`
	Autoextend Autoextend `json:"autoextend"`
}

// Autoextend is how the pool grows. What it counts, it counts since the daemon started.
type Autoextend struct {
	Threshold uint64 `json:"threshold"`  // percent of the data or the metadata in use; 100: it does not grow by itself
	Percent   uint64 `json:"percent"`    // of its size by which it grows
	DataLimit uint64 `json:"data_limit"` // how large the data may become by itself; 0: no limit
	// How often the data and the metadata were made larger, by themselves or by an operator.
	DataExtensions     uint64 `json:"data_extensions"`
	MetadataExtensions uint64 `json:"metadata_extensions"`
	Stuck              string `json:"stuck,omitempty"` // why the pool does not grow although it should
}

// Extension is what POST /v1/pool/extend asks for, in the parameters data and metadata: the sizes that the pool is to
// have. 0 leaves one as it is.
type Extension struct{ Data, Metadata uint64 }

// Trimming is the answer of POST /v1/pool/trim?key=KEY: what was done with one active snapshot that is mounted.
type Trimming struct {
	Key      string `json:"key"`
	DeviceID uint32 `json:"device_id"`
	// Trimmed is what its file system does not use, and had discarded. The kernel counts what its volume had nothing for, too,
	// and an ext4 that was trimmed tells only of what was freed since.
	Trimmed uint64 `json:"trimmed"`
	// Unmapped is by how much less its volume maps than before. What it shared with other snapshots is not free with that.
	Unmapped uint64 `json:"unmapped"`
	Stopped  string `json:"stopped,omitempty"` // why it ended early: it was committed, removed or unmounted meanwhile
}

// The levels of a space, by how much of what can be used is left.
const (
	LevelOK    = "ok"
	LevelLow   = "low"   // less than a fifth is left
	LevelShort = "short" // so little is left that no snapshot is made any more
)

// Space is one of the two devices of a pool and how full it is.
type Space struct {
	Device    string `json:"device"`              // such as /dev/loop0
	LoopFile  string `json:"loop_file,omitempty"` // the file behind a loop device
	Used      uint64 `json:"used"`
	Total     uint64 `json:"total"`
	Available uint64 `json:"available"` // with a loop file, no more than its file system has room for
	MinFree   uint64 `json:"min_free"`  // while less is available no snapshot is made; 0: no limit
	LowWater  uint64 `json:"low_water"` // while less is free the kernel reports it; 0: it does not
	Level     string `json:"level"`     // one of the Level constants
}

// LevelOf returns the level of a space by its Used, Available and MinFree.
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

// Filesystem describes the base volume, which every snapshot without a parent is a snapshot of.
type Filesystem struct {
	Type     string `json:"type"`
	BaseSize uint64 `json:"base_size"`
	BaseUUID string `json:"base_uuid,omitempty"` // absent until there is a base volume
}

// SnapshotCounts counts the snapshots by kind.
type SnapshotCounts struct {
	Active    uint64 `json:"active"`
	View      uint64 `json:"view"`
	Committed uint64 `json:"committed"`
}

// Devices counts the thin volumes.
type Devices struct {
	Active uint64 `json:"active"` // that are mapped now
	Spares uint64 `json:"spares"` // of those, the ones made ahead that no snapshot has taken yet
	// Trash counts the volumes of removed snapshots that the background has yet to delete. Docker calls them the
	// deferred deleted devices.
	Trash   uint64 `json:"trash"`
	IDsUsed uint64 `json:"ids_used"` // ids that were ever given out; an id is used once
	IDsLeft uint64 `json:"ids_left"`
}

// Spares counts the snapshots prepared since the daemon started.
type Spares struct {
	Taken  uint64 `json:"taken"`  // that took a volume which had been made ahead
	Missed uint64 `json:"missed"` // for which there was none
}

// Background counts the volumes that are to be deactivated or deleted in the background, or looked at for that.
type Background struct {
	Running  uint64 `json:"running"`  // that are worked on
	Waiting  uint64 `json:"waiting"`  // whose turn has not come
	Deferred uint64 `json:"deferred"` // that could not be dealt with, mostly because they are in use; they are tried again
	// Of these, with the ones that are being tried again: mapped devices that could not be removed although nobody is to use
	// them any more, and volumes that could not be deleted. The latter are in the trash, unless a crash has left them.
	DeferredRemovals  uint64 `json:"deferred_removals"`
	DeferredDeletions uint64 `json:"deferred_deletions"`
}

// Store counts what the database has done since the daemon started.
type Store struct {
	Operations    uint64  `json:"operations"` // that changed it
	Transactions  uint64  `json:"transactions"`
	Reads         uint64  `json:"reads"`
	CommitSeconds float64 `json:"commit_seconds"` // that its transactions took to be on stable storage
	Bytes         uint64  `json:"bytes"`          // size of its file
}

// Driver describes the kernel's side and how it is used.
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

// Snapshot is one entry of the answer of GET /v1/snapshots, which is sorted by key.
type Snapshot struct {
	Key      string            `json:"key"`
	Kind     string            `json:"kind"`             // one of the Kind constants
	Parent   string            `json:"parent,omitempty"` // the key of a committed snapshot
	DeviceID uint32            `json:"device_id"`        // a view has the id of its parent
	Size     uint64            `json:"size"`             // of the volume
	Used     *uint64           `json:"used,omitempty"`   // what it holds by itself; absent if that is not known
	Shared   *uint64           `json:"shared,omitempty"` // what it maps of its parents' blocks; absent with Used
	Created  time.Time         `json:"created"`
	Updated  time.Time         `json:"updated"`
	Labels   map[string]string `json:"labels,omitempty"` // left out if the request has labels=no
}

// Inspection is the answer of GET /v1/inspect?key=KEY.
type Inspection struct {
	Snapshot
	// Chain has the keys of the ancestors, from the parent to the one without a parent.
	Chain []string `json:"chain"`
	// MappedBytes is the space that the volume maps, shared with other snapshots or not; absent if it is not active.
	MappedBytes *uint64 `json:"mapped_bytes,omitempty"`
	// Device is the volume's mapped device and, below it, all that it stands on.
	Device Device `json:"device"`
}

// Activity is the answer of GET /v1/activity: what the daemon is doing.
type Activity struct {
	// Running are the calls of containerd that have begun and not ended, the oldest first: no more than 100 of the RunningTotal.
	Running      []RunningCall `json:"running"`
	RunningTotal uint64        `json:"running_total"`
	// Recent are the last calls that have ended and changed something, or failed; the latest first.
	Recent []EndedCall `json:"recent"`
	// Totals count all calls that have ended since the daemon started, sorted by method.
	Totals []CallTotal `json:"totals"`
	// Trash are removed snapshots whose volumes are yet to be deleted: no more than 100 of the TrashTotal.
	Trash      []Removed `json:"trash"`
	TrashTotal uint64    `json:"trash_total"`
}

// RunningCall is a call that has not ended.
type RunningCall struct {
	Method    string    `json:"method"`
	Key       string    `json:"key,omitempty"` // of the snapshot that it is about, shortened if it is very long
	StartedAt time.Time `json:"started_at"`
}

// EndedCall is a call that has ended.
type EndedCall struct {
	RunningCall
	Seconds float64 `json:"seconds"` // that it took
	Outcome string  `json:"outcome"` // the name of a gRPC code
}

// CallTotal sums up the calls of one method.
type CallTotal struct {
	Method  string  `json:"method"`
	Ended   uint64  `json:"ended"`
	Failed  uint64  `json:"failed"`  // of these, those with another outcome than OK, NotFound, AlreadyExists and Canceled
	Seconds float64 `json:"seconds"` // that they took together
}

// Removed is a snapshot that is gone for its clients while its volume still is there.
type Removed struct {
	Key      string    `json:"key"` // that it had
	DeviceID uint32    `json:"device_id"`
	Since    time.Time `json:"since"`
}

// History is the answer of GET /v1/history: how full the pool was since the daemon started, the oldest point first.
type History struct {
	Points []Fill `json:"points"`
}

// Fill is how full the pool was at a time.
type Fill struct {
	At time.Time `json:"at"`
	// DataUsed and MetadataUsed are the most that was used since the point before this one.
	DataUsed     uint64 `json:"data_used"`
	MetadataUsed uint64 `json:"metadata_used"`
	// DataAvailable is as Space has it.
	DataAvailable uint64 `json:"data_available"`
	DataTotal     uint64 `json:"data_total"`
	MetadataTotal uint64 `json:"metadata_total"`
}

// The roles of the devices on the way from a snapshot to the disk.
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
	Role      string   `json:"role"`             // one of the Role constants
	Name      string   `json:"name,omitempty"`   // device-mapper's name, for a mapped device
	UUID      string   `json:"uuid,omitempty"`   // device-mapper's UUID, for a mapped device
	Number    string   `json:"number,omitempty"` // "MAJOR:MINOR"; absent for a file and for what is not active
	Path      string   `json:"path,omitempty"`
	Active    bool     `json:"active"` // a volume may be inactive; all else is active
	ReadOnly  bool     `json:"read_only"`
	Suspended bool     `json:"suspended"`
	OpenCount int      `json:"open_count"`       // of a mapped device
	Table     []string `json:"table,omitempty"`  // "START LENGTH TYPE PARAMETERS" in sectors of 512 bytes
	Status    []string `json:"status,omitempty"` // the same for the status
	Below     []Device `json:"below,omitempty"`
}

// problem is the body of every answer that is not a success. The HTTP status gives the class of the error.
type problem struct {
	Message string `json:"message"`
}
