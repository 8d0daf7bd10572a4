package metadata

import (
	"bytes"
	"fmt"

	"github.com/containerd/errdefs"
)

// keyAgain has the id from which the next search for free ids begins, once all ids were leased.
var keyAgain = []byte("again")

// freeRunsExamined is how many ranges of free ids a search compares, unless one is long enough.
const freeRunsExamined = 64

// Wrapped returns true if every id was leased once: from then on ids are leased again that are free.
func (t *Tx) Wrapped() (bool, error) {
	next, err := t.nextDevice()
	return next > MaxDevice, err
}

// NewTransaction adds one to the pool's transaction id, and returns false if it has none of ours.
func (t *Tx) NewTransaction() (bool, error) { return t.addTransaction() }

// FreeAgain returns at most n successive ids that nothing owns and that are in no open lease. The
// search begins with from, or with the id after the last lease if from is 0, and goes round once. It
// prefers a long range. The pool may have volumes with such ids. If there is no free id, the error is
// ResourceExhausted.
func (t *Tx) FreeAgain(from, n uint32) (first, last uint32, err error) {
	least, err := t.firstDevice()
	if err != nil {
		return 0, 0, err
	}
	if v := t.buckets.meta.Get(keyAgain); from == 0 && v != nil {
		if from, err = decodeDevice(v); err != nil {
			return 0, 0, err
		}
	}
	if from < least || from > MaxDevice {
		from = least
	}
	examined := 0
	for _, part := range [][2]uint32{{from, MaxDevice}, {least, from - 1}} {
		for id := part[0]; id <= part[1]; {
			begin, end, err := t.freeRun(id, part[1])
			if err != nil {
				return 0, 0, err
			}
			if begin > part[1] {
				break
			}
			end = uint32(min(uint64(end), uint64(begin)+uint64(n)-1))
			if first == 0 || end-begin > last-first {
				first, last = begin, end
			}
			if examined++; last-first+1 == n || examined == freeRunsExamined {
				return first, last, nil
			}
			id = end + 1
		}
	}
	if first == 0 {
		return 0, 0, fmt.Errorf("the pool has used all its device ids, from %d to %d: remove snapshots: %w", least, MaxDevice,
			errdefs.ErrResourceExhausted)
	}
	return first, last, nil
}

// freeRun returns the first range of free ids from id to last. If there is none, begin is above last.
func (t *Tx) freeRun(id, last uint32) (begin, end uint32, err error) {
	owned := t.buckets.devices.Cursor()
	k, _ := owned.Seek(encodeDevice(id))
	for begin = id; begin <= last; {
		l, leased, err := t.leaseOf(begin)
		switch {
		case err != nil:
			return 0, 0, err
		case leased:
			begin = l.Last + 1
			k, _ = owned.Seek(encodeDevice(begin))
			continue
		case bytes.Equal(k, encodeDevice(begin)):
			begin++
			k, _ = owned.Next()
			continue
		}
		end = last
		if k != nil {
			o, err := decodeDevice(k)
			if err != nil {
				return 0, 0, err
			}
			end = min(end, o-1)
		}
		if k, _ := t.buckets.leases.Cursor().Seek(encodeDevice(begin)); k != nil {
			l, err := decodeDevice(k)
			if err != nil {
				return 0, 0, err
			}
			end = min(end, l-1)
		}
		return begin, end, nil
	}
	return begin, last, nil
}

// LeaseAgain leases the ids from first to last again, and adds one to the pool's transaction id unless
// the pool is foreign. Each must be free (FreeAgain), and the caller must know that the pool has no
// volume with it, and had none when it got its present transaction id. If one is not free, the error
// is FailedPrecondition.
func (t *Tx) LeaseAgain(first, last uint32, written bool) (LeaseRecord, error) {
	free, end, err := t.freeRun(first, last)
	if err != nil {
		return LeaseRecord{}, err
	}
	least, err := t.firstDevice()
	if err != nil {
		return LeaseRecord{}, err
	}
	wrapped, err := t.Wrapped()
	if err != nil {
		return LeaseRecord{}, err
	}
	if first > last || first < least || last > MaxDevice || free != first || end != last || !wrapped {
		return LeaseRecord{}, fmt.Errorf("lease of devices %d to %d again: they are not free: %w", first, last,
			errdefs.ErrFailedPrecondition)
	}
	stamped, err := t.addTransaction()
	if err != nil {
		return LeaseRecord{}, err
	}
	l := LeaseRecord{First: first, Last: last, Written: written && stamped}
	if err := t.putLease(l); err != nil {
		return LeaseRecord{}, err
	}
	return l, t.put(t.buckets.meta, keyAgain, encodeDevice(last+1))
}

// DeviceIDs returns the number of device ids that are in use, by a record or an open lease, and the
// number of those that are left.
func (t *Tx) DeviceIDs() (used, left uint32, err error) {
	first, err := t.firstDevice()
	if err != nil {
		return 0, 0, err
	}
	c, err := t.counters()
	if err != nil {
		return 0, 0, err
	}
	bases, err := t.Bases()
	if err != nil {
		return 0, 0, err
	}
	leases, err := t.Leases()
	if err != nil {
		return 0, 0, err
	}
	n := c.active + c.committed + c.trash + uint64(len(bases)) + uint64(t.KeptCount())
	for _, l := range leases {
		n += uint64(l.Last-l.First) + 1 - t.ownedIn(l)
	}
	all := uint64(MaxDevice) + 1 - uint64(first)
	n = min(n, all)
	return uint32(n), uint32(all - n), nil
}

// ownedIn returns how many ids of a lease are owned.
func (t *Tx) ownedIn(l LeaseRecord) (n uint64) {
	c := t.buckets.devices.Cursor()
	end := encodeDevice(l.Last)
	for k, _ := c.Seek(encodeDevice(l.First)); k != nil && bytes.Compare(k, end) <= 0; k, _ = c.Next() {
		n++
	}
	return n
}

// NextDevice returns the first id that was never leased, MaxDevice+1 if there is none.
func (t *Tx) NextDevice() (uint32, error) { return t.nextDevice() }

// firstDevice returns the least id that is leased.
func (t *Tx) firstDevice() (uint32, error) {
	if v := t.buckets.meta.Get(keyFirst); v != nil {
		return decodeDevice(v)
	}
	return t.nextDevice()
}
