package plan

import (
	"time"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
)

// An input is all that a plan is made of.
type input struct {
	options Options
	now     time.Time // UTC
	poolID  string    // for the record of the pool

	// obstacles were met while the rest was read. unread says that a database or the pool could not be
	// read: then no snapshot can be judged.
	obstacles []Obstacle
	unread    bool

	names        metadb.Names
	databases    builtin.Databases
	installation string // the UUID that containerd keeps in its data; empty if it has none yet
	pool         poolInput
	volumes      map[string]volume // by the names of the built-in's devices
	highest      uint32            // volume of the pool
	foreign      int               // volumes of the pool that no device has
	mapped       []mappedDevice
	loaders      []string
}

// A poolInput is the pool in the kernel.
type poolInput struct {
	name       string // of its mapped device
	uuid       string // may be empty
	lvm        string // VG/LV, or empty
	suspended  bool
	blockBytes uint64
	table      thin.PoolTable
	sectors    uint64
	status     thin.PoolStatus
}

// A volume is what the pool's committed metadata has of a device's volume.
type volume struct {
	exists  bool // in the pool
	whole   bool // it has a tree of mappings
	mapped  uint64
	end     uint64 // block after the last one that it maps
	created uint32
	last    uint32 // the newest time of what it, or the volumes that it was copied from, mapped

	// inherited tells that it maps blocks that are older than itself, although the device is recorded as no
	// copy: the id was given to another volume since.
	inherited bool

	// descent compares it with the volume of the device that the built-in recorded as its parent's; nil
	// if the pool has not both.
	descent *thinmeta.Descent

	// superblock is that of a volume whose content is adopted. unreadable says why there is none.
	// dirtyLog tells that the log of an xfs must be replayed.
	superblock filesystem.Superblock
	unreadable string
	dirtyLog   bool
}

// A mappedDevice is a mapped device of a volume of the pool.
type mappedDevice struct {
	name, uuid string
	shows      uint32
	openCount  int
	mounts     []string // where it is mounted, in any mount name space
}
