package metadata

import (
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// A CommitChange has the fields that change at a Commit.
type CommitChange struct {
	// VolumeID, if not 0, replaces the volume. It must be in an open lease and have no owner. The
	// old volume goes to the trash.
	VolumeID uint32
	Size     uint64 // virtual size in bytes; 0 keeps the size
	Usage    Usage
	Labels   map[string]string // of the committed snapshot, which inherits none
	Now      time.Time         // becomes Created and Updated
}

// Commit turns the active snapshot with this key into a committed one with this name and the same
// parent, and returns it. It adds one to the pool's transaction id unless the pool is foreign. A
// store without the commit, such as a restored backup, then has a lower one.
//
// Errors are those of containerd's own snapshotters: AlreadyExists for name, NotFound for key,
// FailedPrecondition if key is not Active. A snapshot marked by MarkWritesLost is ErrWritesLost.
func (t *Tx) Commit(name, key string, change CommitChange) (Snapshot, error) {
	if err := CheckKey(name); err != nil {
		return Snapshot{}, err
	}
	if err := sameKeySpace(name, key); err != nil {
		return Snapshot{}, err
	}
	if t.Exists(name) {
		return Snapshot{}, fmt.Errorf("committed snapshot %q: %w", name, errdefs.ErrAlreadyExists)
	}
	active, err := t.Get(key)
	if err != nil {
		return Snapshot{}, err
	}
	if active.Kind != snapshots.KindActive {
		return Snapshot{}, fmt.Errorf("snapshot %q is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	if t.HasWritesLost(active) {
		return Snapshot{}, fmt.Errorf("snapshot %q: %w", key, ErrWritesLost)
	}
	var parent Snapshot
	if active.Parent != "" {
		if parent, err = t.Get(active.Parent); err != nil {
			return Snapshot{}, fmt.Errorf("parent of %q: %w", key, err)
		}
	}
	s, err := t.asCommitted(name, active, change)
	if err != nil {
		return Snapshot{}, err
	}
	if s.Size < parent.Size {
		return Snapshot{}, fmt.Errorf("commit snapshot %q with %d bytes: its parent %q has %d: %w",
			key, s.Size, parent.Key, parent.Size, errdefs.ErrInvalidArgument)
	}
	c, err := t.counters()
	if err != nil {
		return Snapshot{}, err
	}
	if s.Client, err = t.clientNumber(name); err != nil {
		return Snapshot{}, err
	}

	c.active--
	c.committed++
	if err := t.countInSpace(name, func(own *counters) { own.active--; own.committed++ }); err != nil {
		return Snapshot{}, err
	}
	if s.VolumeID != active.VolumeID {
		c.trash++
		if err := t.discard(active, s.Created); err != nil {
			return Snapshot{}, err
		}
	}
	if err := t.setOwner(s.VolumeID, Owner{Kind: OwnerSnapshot, Key: name}); err != nil {
		return Snapshot{}, err
	}
	if _, err := t.addTransaction(); err != nil {
		return Snapshot{}, err
	}
	if k := childKey(active, parent); k != nil && s.VolumeID != active.VolumeID {
		if err := t.delete(t.buckets.children, k); err != nil {
			return Snapshot{}, err
		}
		if err := t.put(t.buckets.children, childKey(s, parent), nil); err != nil {
			return Snapshot{}, err
		}
	}
	if err := t.delete(t.buckets.snapshots, []byte(key)); err != nil {
		return Snapshot{}, err
	}
	if err := t.put(t.buckets.snapshots, []byte(name), encodeSnapshot(s)); err != nil {
		return Snapshot{}, err
	}
	if err := t.setCounters(c); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// asCommitted returns the committed snapshot that replaces an active one.
func (t *Tx) asCommitted(name string, active Snapshot, change CommitChange) (Snapshot, error) {
	s := active
	s.Key, s.Kind = name, snapshots.KindCommitted
	s.Labels, s.Usage = cloneLabels(change.Labels), change.Usage
	s.Created = change.Now.UTC()
	s.Updated = s.Created
	if change.Size != 0 {
		s.Size = change.Size
	}
	if change.VolumeID != 0 && change.VolumeID != active.VolumeID {
		if err := t.requireClaimable(change.VolumeID); err != nil {
			return Snapshot{}, fmt.Errorf("commit snapshot %q: %w", active.Key, err)
		}
		s.VolumeID = change.VolumeID
	}
	return s, nil
}
