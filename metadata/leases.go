package metadata

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

var (
	keyFirst = []byte("first") // the first id that was leased
	keyNext  = []byte("next")  // the first id of the next lease; MaxDevice+1 if none is left
)

// Lease leases the next n device ids, none of which was leased before, and adds one to the pool's
// transaction id unless the pool is foreign. In a foreign pool the ids are from FirstInForeign on.
// Near the end of the id space a lease is shorter; when no id is left, the error is
// ResourceExhausted.
func (t *Tx) Lease(n uint32) (LeaseRecord, error) {
	if n == 0 {
		return LeaseRecord{}, fmt.Errorf("lease of no device ids: %w", errdefs.ErrInvalidArgument)
	}
	next, err := t.nextDevice()
	if err != nil {
		return LeaseRecord{}, err
	}
	if next > MaxDevice {
		return LeaseRecord{}, fmt.Errorf("the pool has used all its device ids, up to %d, and no id is used twice; "+
			"migrate to a new pool: %w", MaxDevice, errdefs.ErrResourceExhausted)
	}
	l := LeaseRecord{First: next, Last: uint32(min(uint64(next)+uint64(n)-1, MaxDevice))}

	pool, err := t.Pool()
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
	case err != nil:
		return LeaseRecord{}, err
	case !pool.Foreign():
		pool.TransactionID++
		if err := t.SetPool(pool); err != nil {
			return LeaseRecord{}, err
		}
	}
	if t.buckets.meta.Get(keyFirst) == nil {
		if err := t.put(t.buckets.meta, keyFirst, encodeDevice(l.First)); err != nil {
			return LeaseRecord{}, err
		}
	}
	if err := t.put(t.buckets.leases, encodeDevice(l.First), encodeDevice(l.Last)); err != nil {
		return LeaseRecord{}, err
	}
	return l, t.put(t.buckets.meta, keyNext, encodeDevice(l.Last+1))
}

// Leases returns the open leases, lowest ids first.
func (t *Tx) Leases() ([]LeaseRecord, error) {
	var all []LeaseRecord
	err := t.buckets.leases.ForEach(func(k, v []byte) error {
		l, err := decodeLease(k, v)
		all = append(all, l)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// CloseLease deletes the lease that begins with this id. Each of its ids must have an owner, or no
// volume in the pool: no start looks for leftovers among them again.
func (t *Tx) CloseLease(first uint32) error {
	k := encodeDevice(first)
	if t.buckets.leases.Get(k) == nil {
		return fmt.Errorf("lease of device %d: %w", first, errdefs.ErrNotFound)
	}
	return t.delete(t.buckets.leases, k)
}

// Disown takes a device id that nothing owns out of its open lease, which it splits: the pool has a
// foreign volume with that id, which must not be taken for a leftover. It does nothing if the id is
// in no open lease.
func (t *Tx) Disown(device uint32) error {
	if o, owned := t.Owner(device); owned {
		return fmt.Errorf("device %d is owned by %s: %w", device, o, errdefs.ErrFailedPrecondition)
	}
	l, ok, err := t.leaseOf(device)
	if err != nil || !ok {
		return err
	}
	if err := t.CloseLease(l.First); err != nil {
		return err
	}
	for _, rest := range []LeaseRecord{{l.First, device - 1}, {device + 1, l.Last}} {
		if rest.First > rest.Last {
			continue
		}
		if err := t.put(t.buckets.leases, encodeDevice(rest.First), encodeDevice(rest.Last)); err != nil {
			return err
		}
	}
	return nil
}

// leaseOf returns the open lease that covers the device id, and false if there is none. Leases do
// not overlap: it can only be the last that begins at or before the id.
func (t *Tx) leaseOf(device uint32) (LeaseRecord, bool, error) {
	c := t.buckets.leases.Cursor()
	key := encodeDevice(device)
	k, v := c.Seek(key)
	if string(k) != string(key) {
		if k == nil {
			k, v = c.Last()
		} else {
			k, v = c.Prev()
		}
	}
	if k == nil {
		return LeaseRecord{}, false, nil
	}
	l, err := decodeLease(k, v)
	return l, err == nil && l.First <= device && device <= l.Last, err
}

// DeviceIDs returns the number of device ids that were leased, and the number of those left.
func (t *Tx) DeviceIDs() (used, left uint32, err error) {
	next, err := t.nextDevice()
	if err != nil {
		return 0, 0, err
	}
	first := next
	if v := t.buckets.meta.Get(keyFirst); v != nil {
		if first, err = decodeDevice(v); err != nil {
			return 0, 0, err
		}
	}
	return next - first, MaxDevice + 1 - next, nil
}

func (t *Tx) nextDevice() (uint32, error) {
	if v := t.buckets.meta.Get(keyNext); v != nil {
		return decodeDevice(v)
	}
	pool, err := t.Pool()
	switch {
	case err != nil && !errors.Is(err, errdefs.ErrNotFound):
		return 0, err
	case pool.Foreign():
		return FirstInForeign, nil
	}
	return 1, nil
}

func decodeLease(k, v []byte) (LeaseRecord, error) {
	first, err := decodeDevice(k)
	if err != nil {
		return LeaseRecord{}, err
	}
	last, err := decodeDevice(v)
	return LeaseRecord{First: first, Last: last}, err
}
