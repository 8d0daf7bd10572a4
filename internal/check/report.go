// Package check holds the store, the kernel and the pool against each other, and reports every difference. It only
// looks: what can be mended is mended by those whose work it is, with what the findings name.
package check

import (
	"cmp"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// Report is what a check has found.
type Report struct {
	// Findings are differences that should not be there.
	Findings []Finding `json:"findings"`
	// Pending is what the daemon is about to do, or what its next start will do, as after any crash.
	Pending []Finding `json:"pending"`
	// Mended are the findings that a repair has seen to. A check without repair leaves it empty.
	Mended []Finding `json:"mended"`
	// Examined counts what was looked at.
	Examined Examined `json:"examined"`
}

// Examined counts what a check has looked at.
type Examined struct {
	Snapshots int `json:"snapshots"` // records in the store
	Volumes   int `json:"volumes"`   // thin volumes in the pool, by its own metadata
	Mappings  int `json:"mappings"`  // blocks that those map
	Devices   int `json:"devices"`   // mapped devices in the kernel
}

// Finding is one difference.
type Finding struct {
	Kind Kind `json:"kind"`
	// Subject is what it is about: `snapshot "KEY"`, "volume 12", "pool", or a path.
	Subject string `json:"subject"`
	// Device is the thin device id that it is about; 0 if it is about none.
	Device uint32 `json:"device,omitempty"`
	// Path is the file, directory or device that it is about, if it is.
	Path string `json:"path,omitempty"`
	// Loop is the loop device that it is about, as it was found: by the time of a repair, Path may be another's.
	Loop blockdev.LoopState `json:"-"`
	Text string             `json:"text"`
	// Repair says what a repair does about it; empty if that could lose data.
	Repair string `json:"repair,omitempty"`
}

// Kind says what sort of difference a Finding is.
type Kind string

// The kinds of findings.
const (
	// KindStore: the store contradicts itself.
	KindStore Kind = "store"
	// KindPool: the pool does not work, or is not as the store remembers it.
	KindPool Kind = "pool"
	// KindMetadataSnapshot: a copy of the pool's metadata that nobody uses keeps blocks from being reused.
	KindMetadataSnapshot Kind = "metadata-snapshot"
	// KindMissing: a record's volume is not in the pool.
	KindMissing Kind = "missing"
	// KindUnowned: a volume in the pool that no record owns.
	KindUnowned Kind = "unowned"
	// KindLeftover: one that an interrupted operation has left.
	KindLeftover Kind = "leftover"
	// KindTrash: the volume of a removed snapshot that is still there.
	KindTrash Kind = "trash"
	// KindParent: a volume that cannot be a snapshot of what the store calls its parent.
	KindParent Kind = "parent"
	// KindSize: a volume that maps, or a device that has, more or less than the record says.
	KindSize Kind = "size"
	// KindDevice: a mapped device that should not be there, or not like this.
	KindDevice Kind = "device"
	// KindMount: a mount of the daemon's that nobody uses any more.
	KindMount Kind = "mount"
	// KindLoop: a loop device on a file of the pool, beside the pool's own.
	KindLoop Kind = "loop"
)

// Same tells whether two findings are about the same thing.
func (f Finding) Same(other Finding) bool {
	return f.Kind == other.Kind && f.Subject == other.Subject && f.Device == other.Device && f.Path == other.Path
}

// Persisting leaves out of a report the findings that an earlier one did not have: with a daemon at work, the store, the
// kernel and the pool are looked at one after another, and what changed in between looks like a difference.
func (r Report) Persisting(earlier Report) Report {
	r.Findings = slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool {
		return !slices.ContainsFunc(earlier.Findings, f.Same)
	})
	return r
}

// sorted puts the findings in order, and makes empty lists of those that are not there, as JSON wants them.
func (r Report) sorted() Report {
	for _, list := range []*[]Finding{&r.Findings, &r.Pending, &r.Mended} {
		if *list == nil {
			*list = []Finding{}
		}
		slices.SortFunc(*list, func(a, b Finding) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Subject, b.Subject))
		})
	}
	return r
}
