package plan

import (
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// Options say what is to be adopted, and by which thinsnap.
type Options struct {
	Config          config.Config // of thinsnap: Root and Pool count
	ContainerdRoot  string        // root in containerd's configuration
	RootPath        string        // root_path of the built-in
	Pool            string        // pool_name of the built-in
	From            string        // containerd's name of the built-in: "devmapper"
	Proxy           string        // containerd's name of thinsnap
	LeaveOutDamaged bool          // damaged snapshots do not stand in the way

	ContainerdConfig string // the file of containerd's configuration, which remedies name
}

// A Plan says what an adoption does.
type Plan struct {
	Options   Options
	Rows      []Row      // snapshots, sorted by key; devices without one; names without one
	Obstacles []Obstacle // those that stand in the way of the whole adoption
	Reload    *Reload    // nil if the pool zeroes new blocks
	Idle      []string   // names of the built-in's mapped devices, which are not in use and are deactivated
	Foreign   int        // number of volumes in the pool that no database names: they are left alone

	// What the adoption stores, and what it leaves out, if it is Possible.
	Adoption metadata.Adoption
	LeaveOut metadb.LeaveOut
	Names    metadb.Names // in containerd's database
}

// A Row is a snapshot, a device without a snapshot, or a name of containerd's without a snapshot.
type Row struct {
	Key       string // of the snapshot in the built-in; empty if it has none
	Name      string // what containerd calls it in its Namespace; both are empty if it does not name it
	Namespace string
	Device    string // the built-in's name of its mapped device; empty if it has none
	VolumeID  uint32 // 0 if it has no device
	Kind      string // KindActive, KindCommitted, KindView, KindDevice or KindName
	Bytes     uint64 // virtual size; 0 without a device
	Becomes   Fate
	Problem   string // what is wrong; empty if nothing is
	Remedy    string // empty without a Problem
}

// The kinds of rows.
const (
	KindActive    = "active"
	KindCommitted = "committed"
	KindView      = "view"
	KindDevice    = "device" // without a snapshot
	KindName      = "name"   // without a snapshot
)

// A Fate is what becomes of a snapshot, or of a volume without one.
type Fate string

// The fates.
const (
	// Adopted is a snapshot that is adopted with its volume.
	Adopted Fate = "adopted"
	// AdoptedView is a View that is adopted without its volume: it shows its parent's.
	AdoptedView Fate = "adopted-view"
	// LeftOut is a damaged snapshot, or one that descends from such, which keeps its old name in
	// containerd's database. Without Options.LeaveOutDamaged it stands in the way.
	LeftOut Fate = "left-out"
	// Kept is a volume without a snapshot, which `thinsnap leftovers` lists.
	Kept Fate = "kept"
	// Dropped is a record of the built-in's of which nothing is left to keep.
	Dropped Fate = "dropped"
	// Foreign is a volume that is not proved the built-in's, and is left alone.
	Foreign Fate = "foreign"
)

// An Obstacle stands in the way of the whole adoption.
type Obstacle struct {
	Subject string // a path, a mapped device, `pool "NAME"`, `snapshot "KEY"`
	Text    string // what is wrong
	Remedy  string
}

// A Reload makes the pool zero new blocks.
type Reload struct {
	Table   string   // parameters of the new thin-pool target: the live ones without skip_block_zeroing
	LVM     string   // VG/LV if the pool is LVM's, which is told instead; else empty
	Loaders []string // files that would load a table with skip_block_zeroing at the next boot
}

// Damaged is the number of rows that stand in the way because Options.LeaveOutDamaged is false.
func (p Plan) Damaged() int {
	n := 0
	for _, r := range p.Rows {
		if r.Becomes == LeftOut && !p.Options.LeaveOutDamaged {
			n++
		}
	}
	return n
}

// Possible reports whether nothing stands in the way.
func (p Plan) Possible() bool { return len(p.Obstacles) == 0 && p.Damaged() == 0 }
