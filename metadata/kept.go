package metadata

import (
	"bytes"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// A KeptRecord is a leftover that is not deleted: a client may have written to it, it may be foreign,
// or it was adopted.
type KeptRecord struct {
	VolumeID uint32
	Mapped   uint64    // bytes that the volume maps
	Size     uint64    // bytes up to the end of its last mapped block, or its virtual size
	Found    time.Time // UTC
}

var keyKept = []byte("kept ") // prefix of the keys

func keptKey(device uint32) []byte { return append(bytes.Clone(keyKept), encodeDevice(device)...) }

// Keep records a kept leftover, which becomes the owner of its device id. The id must have no
// owner.
func (t *Tx) Keep(k KeptRecord) error {
	if o, owned := t.Owner(k.VolumeID); owned {
		return fmt.Errorf("device %d is owned by %s: %w", k.VolumeID, o, errdefs.ErrFailedPrecondition)
	}
	if err := t.put(t.buckets.meta, keptKey(k.VolumeID), encodeKept(k)); err != nil {
		return err
	}
	return t.setOwner(k.VolumeID, Owner{Kind: OwnerKept})
}

// Kept returns the leftovers that are kept, lowest id first.
func (t *Tx) Kept() ([]KeptRecord, error) {
	var all []KeptRecord
	err := t.eachKept(func(k, v []byte) error {
		r, err := decodeKept(k, v)
		all = append(all, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// KeptCount returns the number of leftovers that are kept.
func (t *Tx) KeptCount() int {
	n := 0
	_ = t.eachKept(func(_, _ []byte) error { n++; return nil })
	return n
}

// DiscardKept moves a kept leftover to the trash. It returns NotFound if the id is not that of one.
func (t *Tx) DiscardKept(device uint32, now time.Time) error {
	k := keptKey(device)
	v := t.buckets.meta.Get(k)
	if v == nil {
		return fmt.Errorf("leftover volume %d: %w", device, errdefs.ErrNotFound)
	}
	r, err := decodeKept(k, v)
	if err != nil {
		return err
	}
	c, err := t.counters()
	if err != nil {
		return err
	}
	c.trash++
	if err := t.discard(Snapshot{VolumeID: device, Size: r.Size}, now); err != nil {
		return err
	}
	if err := t.delete(t.buckets.meta, k); err != nil {
		return err
	}
	return t.setCounters(c)
}

func (t *Tx) eachKept(fn func(k, v []byte) error) error {
	c := t.buckets.meta.Cursor()
	for k, v := c.Seek(keyKept); bytes.HasPrefix(k, keyKept); k, v = c.Next() {
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}

// encodeKept leaves out the device id, which is in the key.
func encodeKept(k KeptRecord) []byte {
	e := newEncoder(32)
	e.uvarint(k.Mapped)
	e.uvarint(k.Size)
	e.time(k.Found)
	return e.b
}

func decodeKept(k, v []byte) (KeptRecord, error) {
	id, err := decodeDevice(bytes.TrimPrefix(k, keyKept))
	if err != nil {
		return KeptRecord{}, err
	}
	d := newDecoder(v)
	r := KeptRecord{VolumeID: id, Mapped: d.uvarint(), Size: d.uvarint(), Found: d.time()}
	if d.finish() != nil {
		return KeptRecord{}, damaged("record of leftover volume %d", id)
	}
	return r, nil
}
