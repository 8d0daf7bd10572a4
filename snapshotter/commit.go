package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Commit makes an active snapshot a committed one. Its content is on stable
// storage when Commit returns, and never changes after that: if the snapshot is
// still in use, what is committed is a copy of this moment, and the volume that
// is in use goes to the trash.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	_, err := bounded(ctx, s, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.commit(ctx, name, key, opts)
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, s.explained(err))
	}
	return nil
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) (err error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	labels := stored(info.Labels)
	if err := checkLabels(labels); err != nil {
		return err
	}
	var rec metadata.Snapshot
	unlock, err := s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		rec, err = s.committable(ctx, name, key, info.Parent)
		return rec, err
	})
	if err != nil {
		return err
	}
	defer unlock()
	id := thin.ID(rec.Device)
	s.working(ctx, id)
	if err := s.interrupted(ctx, rec); err != nil {
		return err
	}
	if err := s.unshare(id); err != nil {
		return err
	}
	// gofail: var afterUnshareToCommit struct{}
	s.lookForLoss(ctx, watchStep/2)
	if s.volumes.isSpoilt(id) {
		return errSpoilt
	}
	vol, err := s.volumes.useLocked(ctx, id, rec.Size, false)
	if err != nil {
		return err
	}
	// gofail: var afterActivateToCommit struct{}
	change := metadata.CommitChange{Labels: labels, Size: rec.Size}
	clean := s.volumes.isNew(id)
	if vol.OpenCount > 0 {
		if vol, err = s.copyInUse(ctx, vol, rec); err != nil {
			return fmt.Errorf("copy volume %d, which is in use: %w", id, err)
		}
		copied := vol.ID
		s.working(ctx, copied)
		defer func() {
			if err != nil {
				s.abandon(copied, err)
			} else {
				s.ids.settled(copied)
				s.reaper.add(copied, false)
			}
		}()
		// gofail: var afterCopyInUse struct{}
		change.Device = uint32(copied)
		clean = false
	}
	if err = s.seal(ctx, vol, rec, clean); err != nil {
		return err
	}
	// gofail: var afterFlush struct{}
	if change.Usage, err = s.totals(ctx, vol); err != nil {
		return err
	}
	change.Now = now()
	// gofail: var beforeCommitRecord struct{}
	if err = s.store.Update(ctx, func(tx *metadata.Tx) error {
		// The lock keeps others from the volume, but not from the key.
		if err := stillThere(tx, key, id); err != nil {
			return err
		}
		_, err := tx.Commit(name, key, change)
		return err
	}); err != nil {
		return err
	}
	// gofail: var afterCommitRecord struct{}
	s.volumes.forget(id)
	s.reaper.add(id, false)
	s.spares.expect(origin{vol.ID, rec.Filesystem, rec.Size})
	return nil
}

// committable returns the record of key, having seen that it can be committed as
// name: what fails here costs nothing.
func (s *Snapshotter) committable(ctx context.Context, name, key, parent string) (metadata.Snapshot, error) {
	var rec metadata.Snapshot
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		if err := metadata.CheckKey(name); err != nil {
			return err
		}
		if tx.Exists(name) {
			return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
		}
		if rec, err = tx.Get(key); err != nil {
			return err
		}
		if rec.Kind != snapshots.KindActive {
			return fmt.Errorf("it is not active: %w", errdefs.ErrFailedPrecondition)
		}
		if parent != "" && parent != rec.Parent {
			return fmt.Errorf("its parent is %q and cannot become %q: %w", rec.Parent, parent, errdefs.ErrInvalidArgument)
		}
		return nil
	})
	return rec, err
}

// seal puts what was written to a volume that is not in use on stable storage,
// with the file system such that it can be mounted read-only: its journal must
// not need a replay, which a read-only device does not take. Unless it is known
// to be clean, a crash may have come between the last write and the unmount, or
// it is a copy of a mounted one. An ext4 superblock tells whether that matters;
// xfs, which wants a replay even after being frozen, is replayed to be sure.
func (s *Snapshotter) seal(ctx context.Context, vol pool.Volume, rec metadata.Snapshot, clean bool) error {
	sb, err := s.fs.Identify(vol.Path)
	if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
		// A direct read writes out what is in its way, and tells how that went.
		return s.written(vol.ID, err)
	}
	if sb.NeedsRecovery || sb.Type == filesystem.XFS && !clean {
		if err := s.fs.Recover(vol.Path, rec.Filesystem); err != nil {
			return s.written(vol.ID, err)
		}
		// gofail: var afterRecover struct{}
	}
	// gofail: var beforeFlush struct{}
	return s.written(vol.ID, s.pool.Flush(ctx, vol.ID))
}

// written returns err, the outcome of putting a volume's content on stable storage.
// If that failed, it must not be tried again: the kernel tells it once, and takes
// what it could not write for written from then on.
func (s *Snapshotter) written(id thin.ID, err error) error {
	if isIOError(err) {
		s.volumes.spoil(id)
	}
	return err
}

// copyInUse makes a volume with what is on one that is in use, and activates it.
// A file system that is mounted there is frozen for that moment.
func (s *Snapshotter) copyInUse(ctx context.Context, vol pool.Volume, rec metadata.Snapshot) (pool.Volume, error) {
	// To freeze it is to write out what was written to it.
	status, err := s.pool.Status(ctx)
	if err != nil {
		return pool.Volume{}, err
	}
	if err := unwell(status); err != nil {
		return pool.Volume{}, err
	}
	copied, err := s.ids.take(ctx)
	if err != nil {
		return pool.Volume{}, err
	}
	if err := s.written(vol.ID, s.pool.Suspend(ctx, vol.ID)); err != nil {
		s.abandon(copied, err)
		return pool.Volume{}, err
	}
	// gofail: var afterSuspend struct{}
	err = s.pool.CreateSnap(ctx, copied, vol.ID)
	// gofail: var afterCopy struct{}
	err = errors.Join(err, s.pool.Resume(vol.ID))
	// gofail: var afterResume struct{}
	if err == nil {
		vol, err = s.pool.Activate(ctx, copied, rec.Size, false)
	}
	if err != nil {
		s.abandon(copied, err)
	}
	return vol, err
}

// totals returns what a volume holds, its parents' part included.
func (s *Snapshotter) totals(ctx context.Context, vol pool.Volume) (metadata.Usage, error) {
	mapped, err := s.pool.Mapped(ctx, vol.ID)
	if err != nil {
		return metadata.Usage{}, err
	}
	sb, err := s.fs.Identify(vol.Path)
	if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
		return metadata.Usage{}, err
	}
	return metadata.Usage{Bytes: int64(mapped), Inodes: int64(sb.Inodes)}, nil
}
