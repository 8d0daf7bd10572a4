package metadata

import (
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Trash returns the volumes in the trash, lowest id first.
func (t *Tx) Trash() ([]TrashRecord, error) {
	var all []TrashRecord
	err := t.buckets.trash.ForEach(func(k, v []byte) error {
		r, err := decodeTrash(k, v)
		all = append(all, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// TrashSample returns up to limit volumes in the trash, lowest id first. Its cost does not grow
// with the trash.
func (t *Tx) TrashSample(limit int) ([]TrashRecord, error) {
	var some []TrashRecord
	c := t.buckets.trash.Cursor()
	for k, v := c.First(); k != nil && len(some) < limit; k, v = c.Next() {
		r, err := decodeTrash(k, v)
		if err != nil {
			return nil, err
		}
		some = append(some, r)
	}
	return some, nil
}

// TrashEntry returns the record of one volume in the trash, or NotFound.
func (t *Tx) TrashEntry(device uint32) (TrashRecord, error) {
	k := encodeDevice(device)
	v := t.buckets.trash.Get(k)
	if v == nil {
		return TrashRecord{}, fmt.Errorf("device %d in the trash: %w", device, errdefs.ErrNotFound)
	}
	return decodeTrash(k, v)
}

// ClearTrash deletes the record of a volume that was deleted from the pool.
func (t *Tx) ClearTrash(device uint32) error {
	k := encodeDevice(device)
	v := t.buckets.trash.Get(k)
	if v == nil {
		return fmt.Errorf("device %d in the trash: %w", device, errdefs.ErrNotFound)
	}
	// A record that does not decode counts as one of the default key space.
	r, _ := decodeTrash(k, v)
	c, err := t.counters()
	if err != nil {
		return err
	}
	c.trash--
	if err := t.delete(t.buckets.trash, k); err != nil {
		return err
	}
	if err := t.delete(t.buckets.devices, k); err != nil {
		return err
	}
	if err := t.setCounters(c); err != nil || !strings.HasPrefix(r.Key, keySpaceMark) {
		return err
	}
	return t.lowerSchema()
}

// discard moves the volume of s to the trash, which ends its mark of lost writes. The caller counts it.
func (t *Tx) discard(s Snapshot, now time.Time) error {
	if err := t.clearWritesLost(s.VolumeID); err != nil {
		return err
	}
	r := TrashRecord{VolumeID: s.VolumeID, Size: s.Size, Key: s.Key, Filesystem: s.Filesystem, Since: now}
	if err := t.put(t.buckets.trash, encodeDevice(s.VolumeID), encodeTrash(r)); err != nil {
		return err
	}
	return t.setOwner(s.VolumeID, Owner{Kind: OwnerTrash})
}
