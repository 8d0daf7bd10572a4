package metadata

import (
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// Get returns the snapshot with this key, or NotFound.
func (t *Tx) Get(key string) (Snapshot, error) {
	v := t.buckets.snapshots.Get([]byte(key))
	if v == nil {
		return Snapshot{}, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
	}
	return decodeSnapshot(key, v)
}

// Exists reports whether a snapshot has this key.
func (t *Tx) Exists(key string) bool {
	return t.buckets.snapshots.Get([]byte(key)) != nil
}

// Create stores a new Active or View snapshot. Its parent must exist (NotFound) and be committed (InvalidArgument). Its
// key must be free (AlreadyExists).
//
// An Active snapshot becomes the owner of its VolumeID, which must be in an open lease and have no owner. It has its
// parent's file system, and at least its size: a smaller one is InvalidArgument. A View has the VolumeID, Size and
// Filesystem of its parent, or of a base volume if it has no parent. Any other violation of
// these rules is FailedPrecondition.
func (t *Tx) Create(s Snapshot) error {
	if err := CheckKey(s.Key); err != nil {
		return err
	}
	if s.Kind != snapshots.KindActive && s.Kind != snapshots.KindView {
		return fmt.Errorf("create snapshot %q of kind %v, not Active or View: %w", s.Key, s.Kind, errdefs.ErrInvalidArgument)
	}
	if err := t.requireKeySpace(s.Key); err != nil {
		return err
	}
	if s.Usage != (Usage{}) {
		return fmt.Errorf("create snapshot %q with a usage: only committed ones have it: %w", s.Key,
			errdefs.ErrInvalidArgument)
	}
	var parent Snapshot
	if s.Parent != "" {
		if err := sameKeySpace(s.Parent, s.Key); err != nil {
			return err
		}
		var err error
		if parent, err = t.Get(s.Parent); err != nil {
			return fmt.Errorf("parent of %q: %w", s.Key, err)
		}
		if parent.Kind != snapshots.KindCommitted {
			return fmt.Errorf("parent %q of %q is not a committed snapshot: %w", s.Parent, s.Key, errdefs.ErrInvalidArgument)
		}
	}
	if t.Exists(s.Key) {
		return fmt.Errorf("snapshot %q: %w", s.Key, errdefs.ErrAlreadyExists)
	}
	if err := t.checkVolume(s, parent); err != nil {
		return err
	}

	c, err := t.counters()
	if err != nil {
		return err
	}
	if s.Client, err = t.clientNumber(s.Key); err != nil {
		return err
	}
	*c.kind(s.Kind)++
	if err := t.countInSpace(s.Key, func(own *counters) { *own.kind(s.Kind)++ }); err != nil {
		return err
	}
	if err := t.put(t.buckets.snapshots, []byte(s.Key), encodeSnapshot(s)); err != nil {
		return err
	}
	if s.Kind == snapshots.KindActive {
		if err := t.claim(s.VolumeID, Owner{Kind: OwnerSnapshot, Key: s.Key}); err != nil {
			return err
		}
	}
	if k := childKey(s, parent); k != nil {
		if err := t.put(t.buckets.children, k, nil); err != nil {
			return err
		}
	}
	return t.setCounters(c)
}

// checkVolume compares the volume of a new snapshot with its parent's.
func (t *Tx) checkVolume(s, parent Snapshot) error {
	switch {
	case s.Kind == snapshots.KindActive:
		if err := t.requireClaimable(s.VolumeID); err != nil {
			return fmt.Errorf("create snapshot %q: %w", s.Key, err)
		}
		if parent.Key == "" {
			return nil
		}
		if s.Filesystem != parent.Filesystem {
			return fmt.Errorf("create snapshot %q with file system %q: its parent %q has %q: %w",
				s.Key, s.Filesystem, parent.Key, parent.Filesystem, errdefs.ErrFailedPrecondition)
		}
		if s.Size < parent.Size {
			return fmt.Errorf("create snapshot %q of %d bytes: its parent %q has %d: %w",
				s.Key, s.Size, parent.Key, parent.Size, errdefs.ErrInvalidArgument)
		}
	case parent.Key != "":
		if s.VolumeID != parent.VolumeID || s.Size != parent.Size || s.Filesystem != parent.Filesystem {
			return fmt.Errorf("create view %q of device %d (%s, %d bytes): its parent %q has device %d (%s, %d bytes): %w",
				s.Key, s.VolumeID, s.Filesystem, s.Size, parent.Key, parent.VolumeID, parent.Filesystem, parent.Size,
				errdefs.ErrFailedPrecondition)
		}
	default:
		b, err := t.Base(s.Filesystem, s.Size)
		if err != nil || b.VolumeID != s.VolumeID {
			return fmt.Errorf("create view %q of device %d, which is not the base volume %s: %w",
				s.Key, s.VolumeID, baseName(s.Filesystem, s.Size), errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// SetLabels replaces all labels of a snapshot of any kind, and its update time.
func (t *Tx) SetLabels(key string, labels map[string]string, updated time.Time) (Snapshot, error) {
	s, err := t.Get(key)
	if err != nil {
		return Snapshot{}, err
	}
	s.Labels, s.Updated = cloneLabels(labels), updated.UTC()
	if err := t.put(t.buckets.snapshots, []byte(key), encodeSnapshot(s)); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// Remove deletes a snapshot and returns it. A snapshot with children, Views included, stays, and the
// error is FailedPrecondition. The volume of an active or committed snapshot goes to the trash.
func (t *Tx) Remove(key string, now time.Time) (Snapshot, error) {
	s, err := t.Get(key)
	if err != nil {
		return Snapshot{}, err
	}
	if t.hasChildren(s) {
		return Snapshot{}, fmt.Errorf("%q: cannot remove snapshot with child: %w", key, errdefs.ErrFailedPrecondition)
	}
	var parent Snapshot
	if s.Parent != "" {
		if parent, err = t.Get(s.Parent); err != nil {
			return Snapshot{}, fmt.Errorf("parent of %q: %w", key, err)
		}
	}
	c, err := t.counters()
	if err != nil {
		return Snapshot{}, err
	}

	*c.kind(s.Kind)--
	if err := t.countInSpace(s.Key, func(own *counters) { *own.kind(s.Kind)-- }); err != nil {
		return Snapshot{}, err
	}
	if s.Kind != snapshots.KindView {
		c.trash++
		if err := t.discard(s, now); err != nil {
			return Snapshot{}, err
		}
	}
	if k := childKey(s, parent); k != nil {
		if err := t.delete(t.buckets.children, k); err != nil {
			return Snapshot{}, err
		}
	}
	if err := t.delete(t.buckets.snapshots, []byte(key)); err != nil {
		return Snapshot{}, err
	}
	if err := t.setCounters(c); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// sameKeySpace returns InvalidArgument if two stored keys are in different key spaces.
func sameKeySpace(key, other string) error {
	space, _ := SplitKey(key)
	if of, _ := SplitKey(other); of != space {
		return invalid("snapshots %q and %q belong to different clients", key, other)
	}
	return nil
}

// CheckKey returns InvalidArgument unless key is a valid stored key of a snapshot.
func CheckKey(key string) error {
	space, own := SplitKey(key)
	if KeyPrefix(space)+own != key {
		return invalid("snapshot key %q belongs to no client", key)
	}
	_, err := JoinKey(space, own)
	return err
}

func checkKeyLength(key string, most int) error {
	switch {
	case key == "":
		return invalid("empty snapshot key")
	case len(key) > most:
		return invalid("snapshot key of %d bytes exceeds the maximum of %d", len(key), most)
	}
	return nil
}

// cloneLabels returns nil for no labels, as Get does.
func cloneLabels(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	return maps.Clone(labels)
}
