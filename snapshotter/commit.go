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

// Commit makes an active snapshot a committed one. Its content is on stable storage when Commit
// returns, and never changes after that: if the snapshot is still in use, Commit commits a frozen
// copy of it, and the volume in use goes to the trash.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	_, err := runBounded(ctx, s, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.commit(ctx, name, key, opts)
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, s.explain(err))
	}
	return nil
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) (err error) {
	info, err := parseInfo(ctx, key, opts)
	if err != nil {
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
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	if err := s.requireUninterrupted(ctx, rec); err != nil {
		return err
	}
	if err := s.dropMount(id); err != nil {
		return err
	}
	// gofail: var afterUnshareToCommit struct{}
	if _, err := s.detectLostWrites(ctx, watchStep/2); err != nil {
		return err
	}
	if s.volumes.hasWritesLost(id) {
		return errWritesLost
	}
	vol, err := s.volumes.ensureActiveLocked(ctx, id, rec.Size, false)
	if err != nil {
		return err
	}
	// gofail: var afterActivateToCommit struct{}
	change := metadata.CommitChange{Labels: info.Labels, Size: rec.Size}
	clean := s.volumes.wasCreatedHere(id)
	committed := false
	if vol.OpenCount > 0 {
		if vol, err = s.frozenCopy(ctx, vol, rec); err != nil {
			return fmt.Errorf("copy volume %d, which is in use: %w", id, err)
		}
		copied := vol.ID
		s.noteVolume(ctx, copied)
		defer func() {
			if !committed { // also after a panic
				s.abandon(copied, err)
				return
			}
			s.ids.resolve(copied)
			s.reaper.add(copied, false)
		}()
		// gofail: var afterCopyInUse struct{}
		change.VolumeID = uint32(copied)
		clean = false
	}
	if err = s.makeDurable(ctx, vol, rec, clean); err != nil {
		return err
	}
	// gofail: var afterFlush struct{}
	if change.Usage, err = s.measure(ctx, vol); err != nil {
		return err
	}
	change.Now = now()
	// gofail: var beforeCommitRecord struct{}
	if err = s.store.Update(ctx, func(tx *metadata.Tx) error {
		// The lock protects the volume, not the key.
		if err := requireVolume(tx, key, id); err != nil {
			return err
		}
		_, err := tx.Commit(name, key, change)
		return err
	}); err != nil {
		return err
	}
	// gofail: var afterCommitRecord struct{}
	committed = true
	s.volumes.forget(id)
	s.reaper.add(id, false)
	s.spares.expect(origin{vol.ID, rec.Filesystem, rec.Size})
	return nil
}

// committable returns the record of key, and fails if it cannot be committed as name.
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
			return fmt.Errorf("its parent is %q, not %q: %w", rec.Parent, parent, errdefs.ErrInvalidArgument)
		}
		return nil
	})
	return rec, err
}

// makeDurable flushes a volume that is not in use, and replays the journal of its file system if
// that is needed: a read-only device could not be mounted otherwise. An ext4 superblock tells
// whether it is. An xfs needs it even after a freeze, so it is always replayed unless the volume is
// clean: not a copy of a mounted one, and no crash came before its unmount.
func (s *Snapshotter) makeDurable(ctx context.Context, vol pool.Volume, rec metadata.Snapshot, clean bool) error {
	sb, err := s.fs.Identify(vol.Path)
	if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
		// A direct read first writes back cached blocks, and returns the error of that.
		return s.noteFlush(vol.ID, err)
	}
	if sb.NeedsRecovery || sb.Type == filesystem.XFS && !clean {
		if err := s.fs.Recover(vol.Path, rec.Filesystem); err != nil {
			return s.noteFlush(vol.ID, err)
		}
		// gofail: var afterRecover struct{}
	}
	// gofail: var beforeFlush struct{}
	return s.noteFlush(vol.ID, s.pool.Flush(ctx, vol.ID))
}

// noteFlush returns err, the result of a flush of a volume. After an I/O error, a second flush must
// not be believed: the kernel reports the error once, and then takes the lost blocks for written.
func (s *Snapshotter) noteFlush(id thin.ID, err error) error {
	if isIOError(err) {
		s.volumes.noteWritesLost(id)
	}
	return err
}

// frozenCopy creates and activates a copy of a volume that is in use. A file system that is mounted
// on the volume is frozen meanwhile.
func (s *Snapshotter) frozenCopy(ctx context.Context, vol pool.Volume, rec metadata.Snapshot) (pool.Volume, error) {
	// A freeze writes back the file system, which a full pool would not let end.
	status, err := s.pool.Status(ctx)
	if err != nil {
		return pool.Volume{}, err
	}
	if err := poolError(status); err != nil {
		return pool.Volume{}, err
	}
	copied, err := s.ids.take(ctx)
	if err != nil {
		return pool.Volume{}, err
	}
	if err := s.noteFlush(vol.ID, s.pool.Suspend(ctx, vol.ID)); err != nil {
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

// measure returns the usage of a volume, including its parents' part.
func (s *Snapshotter) measure(ctx context.Context, vol pool.Volume) (metadata.Usage, error) {
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
