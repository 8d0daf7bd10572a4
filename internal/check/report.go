package check

import (
	"cmp"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// Report is the result of a check.
type Report struct {
	// Findings are the problems.
	Findings []Finding `json:"findings"`
	// Pending are normal differences, which the daemon settles now or at its next start.
	Pending []Finding `json:"pending"`
	// Repaired are the findings that were repaired. It is empty without a repair.
	Repaired []Finding `json:"repaired"`
	// Examined has the numbers of checked objects.
	Examined Examined `json:"examined"`
}

// Examined counts the objects that a check has compared.
type Examined struct {
	Snapshots int `json:"snapshots"` // records in the store
	Volumes   int `json:"volumes"`   // thin devices in the pool, by its own metadata
	Mappings  int `json:"mappings"`  // blocks that they map
	Devices   int `json:"devices"`   // mapped devices in the kernel
}

// Finding is one difference between the store, the kernel and the pool.
type Finding struct {
	Kind Kind `json:"kind"` // see below
	// Subject is the object: `snapshot "KEY"`, "volume 12", "pool", or a path.
	Subject string `json:"subject"`
	// DeviceID is the object's thin device id.
	DeviceID uint32 `json:"device_id,omitempty"`
	// Path is the object's file, directory or device.
	Path string `json:"path,omitempty"`
	// Loop is the loop device as it was found. At the time of a repair, Path may belong to another
	// one.
	Loop blockdev.LoopState `json:"-"`
	Text string             `json:"text"`
	// Repair is the action of a repair; absent if there is no safe one.
	Repair string `json:"repair,omitempty"`
}

// Kind is the kind of a Finding.
type Kind string

// The kinds of findings.
const (
	// KindStore: the store contradicts itself.
	KindStore Kind = "store"
	// KindPool: the pool does not work, or does not match the store.
	KindPool Kind = "pool"
	// KindSpace: the pool promises more space than the disk below its files has.
	KindSpace Kind = "space"
	// KindBlocks: the pool counts more blocks as used than its volumes map, which loses only space.
	KindBlocks Kind = "blocks"
	// KindMetadataSnapshot: a metadata snapshot, left by a crash or not thinsnap's, keeps blocks
	// from being reused, and the volumes were not checked.
	KindMetadataSnapshot Kind = "metadata-snapshot"
	// KindMissing: a record's volume is not in the pool.
	KindMissing Kind = "missing"
	// KindUnowned: a volume in the pool that no record owns.
	KindUnowned Kind = "unowned"
	// KindLeftover: a volume left by an interrupted operation.
	KindLeftover Kind = "leftover"
	// KindKept: a volume that the store does not know and a client may have written to.
	KindKept Kind = "kept"
	// KindTrash: the volume of a removed snapshot is not deleted yet.
	KindTrash Kind = "trash"
	// KindParent: a volume that cannot be a snapshot of its parent's volume.
	KindParent Kind = "parent"
	// KindSize: the size of a volume or of its mapped device differs from the record.
	KindSize Kind = "size"
	// KindDevice: a mapped device that should not exist, or is in the wrong state.
	KindDevice Kind = "device"
	// KindMount: an unused mount of the daemon.
	KindMount Kind = "mount"
	// KindLoop: a second loop device on a file of the pool.
	KindLoop Kind = "loop"
)

// Same returns true if both findings are about the same object.
func (f Finding) Same(other Finding) bool {
	return f.Kind == other.Kind && f.Subject == other.Subject && f.DeviceID == other.DeviceID && f.Path == other.Path
}

// Persisting returns the report with only those findings that an earlier report has too. While a
// daemon is running, a change between the reads of the store, the kernel and the pool looks like a
// difference.
func (r Report) Persisting(earlier Report) Report {
	r.Findings = slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool {
		return !slices.ContainsFunc(earlier.Findings, f.Same)
	})
	return r
}

// sorted sorts the findings. It replaces nil lists by empty ones, for JSON.
func (r Report) sorted() Report {
	for _, list := range []*[]Finding{&r.Findings, &r.Pending, &r.Repaired} {
		if *list == nil {
			*list = []Finding{}
		}
		slices.SortFunc(*list, func(a, b Finding) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.DeviceID, b.DeviceID), cmp.Compare(a.Subject, b.Subject))
		})
	}
	return r
}
