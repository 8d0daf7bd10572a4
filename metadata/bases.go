package metadata

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// maxFilesystem is the maximum length of a file system's name, in bytes.
const maxFilesystem = 64

func baseName(fs string, size uint64) string { return fmt.Sprintf("%s/%d", fs, size) }

// Base returns the base volume of a file system and virtual size, or NotFound.
func (t *Tx) Base(fs string, size uint64) (BaseRecord, error) {
	k := baseKey(fs, size)
	v := t.buckets.bases.Get(k)
	if v == nil {
		return BaseRecord{}, fmt.Errorf("base volume %s: %w", baseName(fs, size), errdefs.ErrNotFound)
	}
	return decodeBase(k, v)
}

// SetBase stores a base volume. Its device id must be in an open lease and have no owner. Storing a
// known base volume again needs the same device id; another id is AlreadyExists.
func (t *Tx) SetBase(b BaseRecord) error {
	if b.Filesystem == "" || len(b.Filesystem) > maxFilesystem {
		return fmt.Errorf("base volume with file system %q: %w", b.Filesystem, errdefs.ErrInvalidArgument)
	}
	name := baseName(b.Filesystem, b.Size)
	k := baseKey(b.Filesystem, b.Size)
	if v := t.buckets.bases.Get(k); v != nil {
		old, err := decodeBase(k, v)
		if err != nil {
			return err
		}
		if old.VolumeID != b.VolumeID {
			return fmt.Errorf("base volume %s is device %d: %w", name, old.VolumeID, errdefs.ErrAlreadyExists)
		}
	} else {
		if err := t.requireClaimable(b.VolumeID); err != nil {
			return fmt.Errorf("store base volume %s: %w", name, err)
		}
		if err := t.claim(b.VolumeID, Owner{Kind: OwnerBase, Key: name}); err != nil {
			return err
		}
	}
	return t.put(t.buckets.bases, k, encodeBase(b))
}

// DiscardBase deletes the record of a base volume, and moves its volume to the trash. While Views
// show it, the error is FailedPrecondition.
func (t *Tx) DiscardBase(fs string, size uint64, now time.Time) (BaseRecord, error) {
	b, err := t.Base(fs, size)
	if err != nil {
		return BaseRecord{}, err
	}
	name := Owner{Kind: OwnerBase, Key: baseName(fs, size)}.String()
	switch views, err := t.Views(b.VolumeID); {
	case err != nil:
		return BaseRecord{}, err
	case views > 0:
		return BaseRecord{}, fmt.Errorf("%s has %d views: %w", name, views, errdefs.ErrFailedPrecondition)
	}
	c, err := t.counters()
	if err != nil {
		return BaseRecord{}, err
	}
	c.trash++
	volume := Snapshot{Key: name, VolumeID: b.VolumeID, Size: b.Size, Filesystem: b.Filesystem}
	if err := t.discard(volume, now); err != nil {
		return BaseRecord{}, err
	}
	if err := t.delete(t.buckets.bases, baseKey(fs, size)); err != nil {
		return BaseRecord{}, err
	}
	return b, t.setCounters(c)
}

// Bases returns all base volumes, the smallest first.
func (t *Tx) Bases() ([]BaseRecord, error) {
	var all []BaseRecord
	err := t.buckets.bases.ForEach(func(k, v []byte) error {
		b, err := decodeBase(k, v)
		all = append(all, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
