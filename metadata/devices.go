package metadata

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// String describes the owner for messages.
func (o Owner) String() string {
	switch o.Kind {
	case OwnerSnapshot:
		return fmt.Sprintf("snapshot %q", o.Key)
	case OwnerBase:
		return "base volume " + o.Key
	case OwnerTrash:
		return "the trash"
	case OwnerKept:
		return "a kept leftover"
	default:
		return "an unreadable entry"
	}
}

// Owner returns the owner of a device id, and false if it has none. Views own nothing.
func (t *Tx) Owner(device uint32) (Owner, bool) {
	v := t.buckets.devices.Get(encodeDevice(device))
	if v == nil {
		return Owner{}, false
	}
	return decodeOwner(v), true
}

func (t *Tx) setOwner(device uint32, o Owner) error {
	return t.put(t.buckets.devices, encodeDevice(device), encodeOwner(o))
}

// claim sets the owner of a claimable device id. In a Written lease it adds one to the pool's
// transaction id, unless the pool is foreign.
func (t *Tx) claim(device uint32, o Owner) error {
	lease, _, err := t.leaseOf(device)
	if err != nil {
		return err
	}
	if lease.Written {
		if _, err := t.addTransaction(); err != nil {
			return err
		}
	}
	return t.setOwner(device, o)
}

// requireClaimable returns nil if the device id is in an open lease and has no owner. Its error is
// never AlreadyExists: containerd would relate that to its key.
func (t *Tx) requireClaimable(device uint32) error {
	if o, owned := t.Owner(device); owned {
		return fmt.Errorf("device %d is owned by %s: %w", device, o, errdefs.ErrFailedPrecondition)
	}
	if _, leased, err := t.leaseOf(device); err != nil {
		return err
	} else if !leased {
		return fmt.Errorf("device %d is in no open lease: %w", device, errdefs.ErrFailedPrecondition)
	}
	return nil
}
