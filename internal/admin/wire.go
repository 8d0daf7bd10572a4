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
	MinFreeSpace  uint64 `json:"min_free_space"` // of the data; below it no snapshot is made; 0: no limit
	// LowWater is how much data space is free when the kernel raises an event.
	LowWater uint64 `json:"low_water"`
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

// Space is one of the two devices of a pool and how full it is.
type Space struct {
	Device    string `json:"device"`              // such as /dev/loop0
	LoopFile  string `json:"loop_file,omitempty"` // the file behind a loop device
	Used      uint64 `json:"used"`
	Total     uint64 `json:"total"`
	Available uint64 `json:"available"` // with a loop file, no more than its file system has room for
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
	Created  time.Time         `json:"created"`
	Updated  time.Time         `json:"updated"`
	Labels   map[string]string `json:"labels,omitempty"`
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
