package metadata

import (
	"bytes"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// ErrWritesLost is returned by Commit for a snapshot that may have lost writes.
var ErrWritesLost = fmt.Errorf("some writes to it may be lost, because its pool was full or failed, or its file "+
	"system failed: remove it, then pull or build it again: %w", errdefs.ErrDataLoss)

// keyWritesLost is the prefix of the keys of volumes that may have lost writes. The value is the snapshot's key.
// An entry is stale if no active snapshot with this key has the volume: an older thinsnap leaves it when it removes or
// commits the snapshot.
var keyWritesLost = []byte("writes lost ")

func writesLostKey(device uint32) []byte {
	return append(bytes.Clone(keyWritesLost), encodeDevice(device)...)
}

// MarkWritesLost records that the volume of an active snapshot may have lost writes. The mark ends with the
// snapshot. Other volumes get no mark: they are never committed. MarkWritesLost returns whether the volume has
// an owner. If not, call it again later: an active snapshot may own the volume by then.
func (t *Tx) MarkWritesLost(device uint32) (owned bool, err error) {
	o, owned := t.Owner(device)
	if !owned || !t.ownsActive(device, o.Key) {
		return owned, nil
	}
	return true, t.put(t.buckets.meta, writesLostKey(device), []byte(o.Key))
}

// WritesLost returns the volumes of active snapshots that may have lost writes, lowest id first. Its cost grows
// with their number, not with the store's size.
func (t *Tx) WritesLost() ([]uint32, error) {
	var all []uint32
	err := t.eachWritesLost(func(_ []byte, device uint32, key string) error {
		if t.ownsActive(device, key) {
			all = append(all, device)
		}
		return nil
	})
	return all, err
}

// eachWritesLost calls fn for each mark, with its key in the bucket, its volume and its snapshot. The volume
// is 0, which no snapshot has, if the key is damaged.
func (t *Tx) eachWritesLost(fn func(k []byte, device uint32, key string) error) error {
	c := t.buckets.meta.Cursor()
	for k, v := c.Seek(keyWritesLost); bytes.HasPrefix(k, keyWritesLost); k, v = c.Next() {
		device, err := decodeDevice(bytes.TrimPrefix(k, keyWritesLost))
		if err != nil {
			device = 0
		}
		if err := fn(k, device, string(v)); err != nil {
			return err
		}
	}
	return nil
}

// ownsActive reports whether an active snapshot with this key owns the device id.
func (t *Tx) ownsActive(device uint32, key string) bool {
	d := newDecoder(t.buckets.snapshots.Get([]byte(key)))
	d.noLabels = true // a scrape of the metrics reads each marked snapshot
	s, err := d.snapshot(key)
	return err == nil && s.Kind == snapshots.KindActive && s.VolumeID == device
}

// HasWritesLost reports whether a snapshot is active and may have lost writes.
func (t *Tx) HasWritesLost(s Snapshot) bool {
	v := t.buckets.meta.Get(writesLostKey(s.VolumeID))
	return s.Kind == snapshots.KindActive && v != nil && string(v) == s.Key
}

// clearWritesLost ends the mark of a volume, if it has one.
func (t *Tx) clearWritesLost(device uint32) error {
	k := writesLostKey(device)
	if t.buckets.meta.Get(k) == nil {
		return nil
	}
	return t.delete(t.buckets.meta, k)
}
