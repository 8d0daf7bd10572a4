package plan

import (
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// Options select the snapshots to adopt, and the thinsnap that adopts them.
type Options struct {
	Config          config.Config // of thinsnap; only Root and Pool are used
	ContainerdRoot  string        // root in containerd's configuration
	RootPath        string        // root_path of the built-in
	Pool            string        // pool_name of the built-in
	From            string        // containerd's name of the built-in, such as "devmapper"
	Proxy           string        // containerd's name of thinsnap
	LeaveOutDamaged bool          // adopt the rest if snapshots are damaged

	ContainerdConfig string // the path of containerd's configuration, for remedies
}

// A Plan describes an adoption.
type Plan struct {
	Options   Options
	Rows      []Row      // snapshots, sorted by key; devices without a snapshot; names without one
	Obstacles []Obstacle // of the whole adoption
	Reload    *Reload    // nil if the pool zeroes new blocks
	Idle      []string   // the built-in's mapped devices that are not in use, to be deactivated
	Foreign   int        // the number of volumes in the pool that no database names; thinsnap leaves them alone

	// The records to store, and the names to leave out, if it is Possible.
	Adoption metadata.Adoption
	LeaveOut metadb.LeaveOut
	Names    metadb.Names // in containerd's database
}

// A Row is a snapshot, a device without a snapshot, or a name of containerd without a snapshot.
type Row struct {
	Key       string // the snapshot's key in the built-in; "" if it has none
	Name      string // its name in containerd's Namespace; both are "" if containerd does not name it
	Namespace string
	Device    string // the built-in's name of its mapped device; "" if it has none
	VolumeID  uint32 // 0 if it has no device
	Kind      string // KindActive, KindCommitted, KindView, KindDevice or KindName
	Bytes     uint64 // virtual size; 0 without a device
	Becomes   Fate
	Problem   string // "" if it has none
	Remedy    string // "" without a Problem
}

// The kinds of rows.
const (
	KindActive    = "active"
	KindCommitted = "committed"
	KindView      = "view"
	KindDevice    = "device" // without a snapshot
	KindName      = "name"   // without a snapshot
)

// A Fate is the outcome of a snapshot, or of a volume without one.
type Fate string

// The fates.
const (
	// Adopted is a snapshot that is adopted with its volume.
	Adopted Fate = "adopted"
	// AdoptedView is a View that is adopted without its volume. It shows its parent's.
	AdoptedView Fate = "adopted-view"
	// LeftOut is a damaged snapshot or a descendant of one. It keeps its old name in containerd's
	// database. Unless Options.LeaveOutDamaged is set, it prevents the adoption.
	LeftOut Fate = "left-out"
	// Kept is a volume without a snapshot, which `thinsnap leftovers` lists.
	Kept Fate = "kept"
	// Dropped is a record of the built-in without a volume to keep.
	Dropped Fate = "dropped"
	// Foreign is a volume that is not proved to be the built-in's. It is left alone.
	Foreign Fate = "foreign"
)

// An Obstacle prevents the adoption.
type Obstacle struct {
	Subject string // a path, a mapped device, `pool "NAME"`, `snapshot "KEY"`
	Text    string // the problem
	Remedy  string
}

// A Reload makes the pool zero new blocks.
type Reload struct {
	Table   string   // parameters of the new thin-pool target: the live ones without skip_block_zeroing
	LVM     string   // VG/LV of an LVM pool, which LVM changes instead; else ""
	Loaders []string // files that may load a table with skip_block_zeroing at the next boot
}

// Damaged returns the number of rows that prevent the adoption: LeftOut, without
// Options.LeaveOutDamaged.
func (p Plan) Damaged() int {
	n := 0
	for _, r := range p.Rows {
		if r.Becomes == LeftOut && !p.Options.LeaveOutDamaged {
			n++
		}
	}
	return n
}

// Possible returns true if nothing prevents the adoption.
func (p Plan) Possible() bool { return len(p.Obstacles) == 0 && p.Damaged() == 0 }
