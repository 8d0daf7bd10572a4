package plan

import (
	"time"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
)

// An input has all data from which a plan is made.
type input struct {
	options Options
	now     time.Time // UTC
	poolID  string    // for the pool's record

	// obstacles were found during the reading. unread is true if a database or the pool could not
	// be read, so that no snapshot can be judged.
	obstacles []Obstacle
	unread    bool

	names        metadb.Names
	databases    builtin.Databases
	installation string // the UUID in containerd's data; "" if it has none yet
	pool         poolInput
	volumes      map[string]volume // by the names of the built-in's devices
	highest      uint32            // the highest volume id in the pool
	foreign      int               // the number of volumes in the pool that belong to no device of the built-in
	mapped       []mappedDevice
	loaders      []string
}

// A poolInput describes the pool in the kernel.
type poolInput struct {
	name       string // of the mapped device
	uuid       string // of the mapped device; may be ""
	lvm        string // VG/LV, or ""
	suspended  bool
	blockBytes uint64
	table      thin.PoolTable
	sectors    uint64
	status     thin.PoolStatus
}

// A volume describes the volume of a device by the pool's committed metadata.
type volume struct {
	exists  bool // in the pool
	whole   bool // its mapping tree exists
	mapped  uint64
	end     uint64 // the block after its last mapped one
	created uint32
	last    uint32 // the newest time of its mappings, and of those that its origins had at the copy

	// inherited is true if it maps blocks older than itself although the device is recorded as no
	// copy: the id was given to another volume since.
	inherited bool

	// descent compares it with the volume of the recorded parent device. It is nil if the pool
	// lacks one of the two.
	descent *thinmeta.Descent

	// superblock is read if the content is to be adopted. unreadable is the reason why it could not
	// be read. dirtyLog is true if the log of an xfs must be replayed.
	superblock filesystem.Superblock
	unreadable string
	dirtyLog   bool
}

// A mappedDevice is a mapped device of a volume in the pool.
type mappedDevice struct {
	name, uuid string
	shows      uint32
	openCount  int
	mounts     []string // its mount points, in all mount namespaces
}
