package metadata

import "github.com/containerd/containerd/v2/core/snapshots"

// A VolumeState is the state of a volume according to the store, which decides what settle does
// with it.
type VolumeState uint8

// The states of a volume.
const (
	VolumeInUse   VolumeState = iota // owned by an active snapshot, or the owner or its record cannot be read
	VolumeIdle                       // owned by a committed snapshot or a base volume, without Views
	VolumeViewed                     // the same, with Views
	VolumeTrash                      // in the trash
	VolumeKept                       // a leftover that is kept
	VolumeLeased                     // no owner, in an open lease: new, or a leftover of a crash
	VolumeUnknown                    // no owner, in no open lease
)

// VolumeState returns the state of the volume with this id. If a record cannot be read, the error
// names it, and the state is VolumeInUse or VolumeLeased: the caller must not delete the volume.
func (t *Tx) VolumeState(id uint32) (VolumeState, error) {
	owner, owned := t.Owner(id)
	switch {
	case !owned:
		if _, leased, err := t.leaseOf(id); err != nil || leased {
			return VolumeLeased, err
		}
		return VolumeUnknown, nil
	case owner.Kind == OwnerTrash:
		return VolumeTrash, nil
	case owner.Kind == OwnerKept:
		return VolumeKept, nil
	case owner.Kind == OwnerUnknown:
		return VolumeInUse, damaged("owner of device %d", id)
	case owner.Kind == OwnerSnapshot:
		rec, err := t.Get(owner.Key)
		if err != nil || rec.Kind != snapshots.KindCommitted {
			return VolumeInUse, err
		}
	}
	views, err := t.Views(id)
	switch {
	case err != nil:
		return VolumeInUse, err
	case views > 0:
		return VolumeViewed, nil
	}
	return VolumeIdle, nil
}
