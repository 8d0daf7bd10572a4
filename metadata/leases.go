package metadata

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

var (
	keyFirst = []byte("first") // the first id ever leased
	keyNext  = []byte("next")  // the first id of the next lease; MaxDevice+1 if no id is left
)

// Lease leases the next n device ids, and adds one to the pool's transaction id unless the pool is
// foreign. No id is leased twice. In a foreign pool the ids start at FirstInForeign. Near the end
// of the id space a lease is shorter; when no id is left, the error is ResourceExhausted.
func (t *Tx) Lease(n uint32) (LeaseRecord, error) { return t.lease(n, false) }

// LeaseWritten is Lease for volumes that thinsnap writes to before a record owns them. In a foreign
// pool, which takes no stamp, it is the same as Lease.
func (t *Tx) LeaseWritten(n uint32) (LeaseRecord, error) { return t.lease(n, true) }

func (t *Tx) lease(n uint32, written bool) (LeaseRecord, error) {
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
	stamped, err := t.addTransaction()
	if err != nil {
		return LeaseRecord{}, err
	}
	l := LeaseRecord{First: next, Last: uint32(min(uint64(next)+uint64(n)-1, MaxDevice)), Written: written && stamped}
	if t.buckets.meta.Get(keyFirst) == nil {
		if err := t.put(t.buckets.meta, keyFirst, encodeDevice(l.First)); err != nil {
			return LeaseRecord{}, err
		}
	}
	if err := t.putLease(l); err != nil {
		return LeaseRecord{}, err
	}
	return l, t.put(t.buckets.meta, keyNext, encodeDevice(l.Last+1))
}

// addTransaction adds one to the pool's transaction id. It returns false if there is no pool, or a
// foreign one.
func (t *Tx) addTransaction() (bool, error) {
	pool, err := t.Pool()
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && pool.Foreign() {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	pool.TransactionID++
	return true, t.SetPool(pool)
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

// CloseLease deletes the lease that begins with this id. Each of its ids must have an owner or no
// volume: later starts do not look for leftovers among them.
func (t *Tx) CloseLease(first uint32) error {
	k := encodeDevice(first)
	if t.buckets.leases.Get(k) == nil {
		return fmt.Errorf("lease of device %d: %w", first, errdefs.ErrNotFound)
	}
	return t.delete(t.buckets.leases, k)
}

// Disown takes the device id of a foreign volume out of its open lease, which it splits: otherwise
// the volume would be taken for a leftover. The id must have no owner. Disown does nothing if the
// id is in no open lease.
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
	for _, rest := range []LeaseRecord{
		{First: l.First, Last: device - 1, Written: l.Written}, {First: device + 1, Last: l.Last, Written: l.Written},
	} {
		if rest.First > rest.Last {
			continue
		}
		if err := t.putLease(rest); err != nil {
			return err
		}
	}
	return nil
}

// leaseOf returns the open lease that has the device id, and false if none has. Leases do not
// overlap, so only the last one that begins at or before the id can have it.
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

// DeviceIDs returns how many device ids were leased, and how many are left.
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

// leaseWritten follows the last id in the value of a Written lease.
const leaseWritten = 1

func (t *Tx) putLease(l LeaseRecord) error {
	v := encodeDevice(l.Last)
	if l.Written {
		v = append(v, leaseWritten)
	}
	return t.put(t.buckets.leases, encodeDevice(l.First), v)
}

func decodeLease(k, v []byte) (LeaseRecord, error) {
	first, err := decodeDevice(k)
	if err != nil {
		return LeaseRecord{}, err
	}
	last, written := bytes.CutSuffix(v, []byte{leaseWritten})
	if written = written && len(v) == 5; !written {
		last = v
	}
	l := LeaseRecord{First: first, Written: written}
	l.Last, err = decodeDevice(last)
	return l, err
}
