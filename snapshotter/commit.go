package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Commit turns an active snapshot into a committed one. Its content is on stable storage when Commit
// returns, and never changes after that. If the snapshot is still in use, Commit commits a frozen copy,
// and the volume in use goes to the trash.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	_, err := runInKernel(ctx, s, func(ctx context.Context) (struct{}, error) {
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
	if err := s.requireNoWritesLost(ctx, id); err != nil {
		return err
	}
	vol, committed := pool.Volume{ID: id}, false
	defer func() { // runs after a panic, too
		switch {
		case !committed:
			s.undoCommit(id, vol.ID, err)
		case vol.ID != id:
			s.ids.resolve(vol.ID)
			s.reaper.add(vol.ID, false)
		}
	}()
	sb, err := s.finalizeContent(ctx, rec, &vol)
	if err != nil {
		return err
	}
	change := metadata.CommitChange{Labels: info.Labels, Size: rec.Size}
	if vol.ID != id {
		change.VolumeID = uint32(vol.ID)
	}
	if change.Usage, err = s.measure(ctx, rec, vol, sb); err != nil {
		return err
	}
	change.Now = now()
	// gofail: var beforeCommitRecord struct{}
	commit := func() error {
		return s.store.Update(ctx, func(tx *metadata.Tx) error {
			// The lock protects the volume, not the key.
			if err := requireVolume(tx, key, id); err != nil {
				return err
			}
			_, err := tx.Commit(name, key, change)
			return err
		})
	}
	stored := false
	err = s.ids.updateStamped(ctx, func() error {
		err := commit()
		stored = err == nil
		return err
	})
	if !stored {
		return err
	}
	// gofail: var afterCommitRecord struct{}
	committed = true
	s.volumes.forget(id)
	s.dropServed(id)
	s.reaper.add(id, false)
	s.spares.expect(origin{volume: vol.ID, filesystem: rec.Filesystem, bytes: rec.Size})
	if err == nil {
		return nil
	}
	// The record cannot be undone: clients may have used the layer.
	s.ids.stampLater(err)
	if vol.ID == id {
		return nil
	}
	// Until the stamp, an older store would be accepted, and a start with it would delete the copy as a
	// leftover.
	return fmt.Errorf("the layer is stored, but the pool does not yet have the store's transaction id: %w: %w", err,
		errdefs.ErrUnavailable)
}

// requireNoWritesLost fails for a volume that may have lost writes.
func (s *Snapshotter) requireNoWritesLost(ctx context.Context, id thin.ID) error {
	age := watchStep / 2
	status, err := s.pool.RecentStatus(ctx, age)
	if err == nil && !status.QueueIfNoSpace {
		age = 0 // the pool may have failed the writes of the last unmount
	}
	if _, err := s.detectLostWrites(ctx, age); err != nil {
		return err
	}
	if !s.volumes.hasWritesLost(id) {
		return nil
	}
	s.markWritesLost(ctx, id) // detectLostWrites may have found it just now
	return metadata.ErrWritesLost
}

// finalizeContent sets vol to an active volume with the final content of a snapshot: its own volume, or a
// frozen copy of a volume in use. Where only an unmount or a close makes a copy whole, it waits up to
// busyWait. The result sb is the superblock of vol's file system, or nil if it was not read.
func (s *Snapshotter) finalizeContent(
	ctx context.Context, rec metadata.Snapshot, vol *pool.Volume,
) (sb *filesystem.Superblock, err error) {
	id := thin.ID(rec.VolumeID)
	own, err := s.volumes.ensureActiveLocked(ctx, id, rec.Size, false)
	if err != nil {
		return nil, err
	}
	// gofail: var afterActivateToCommit struct{}
	for deadline := time.Now().Add(busyWait); ; {
		*vol = own
		if own.OpenCount == 0 {
			var found filesystem.Superblock
			if own, found, err = s.seal(ctx, own, rec, false); err != nil || own.OpenCount == 0 {
				// gofail: var afterSeal struct{}
				return &found, err
			}
		}
		again, err := s.tryCopy(ctx, own, rec, vol, deadline)
		if !again {
			return nil, err
		}
		if own, err = s.pool.Lookup(ctx, id); err != nil {
			return nil, err
		}
	}
}

// undoCommit undoes a failed Commit: it deletes the copy of a volume in use, or makes the device writable
// again.
func (s *Snapshotter) undoCommit(id, content thin.ID, err error) {
	switch {
	case content != id:
		s.abandon(content, err)
	case errors.Is(err, metadata.ErrInDoubt): // the record may be committed
	default:
		if err := s.unseal(id); err != nil {
			s.reaper.add(id, false)
		}
	}
}

// committable returns the record of key. It fails if that cannot be committed as name.
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

// measure returns the usage of a snapshot from vol, which has its final content. That is on stable storage,
// so the pool has committed the mappings. measure reads the superblock if sb is nil.
func (s *Snapshotter) measure(
	ctx context.Context, rec metadata.Snapshot, vol pool.Volume, sb *filesystem.Superblock,
) (usage metadata.Usage, err error) {
	var parent metadata.Snapshot
	if rec.Parent != "" {
		if parent, err = s.get(ctx, rec.Parent); err != nil {
			return metadata.Usage{}, err
		}
	}
	bytes, err := s.pool.Usage(ctx, vol.ID, thin.ID(parent.VolumeID), 0)
	usage = metadata.Usage{Bytes: int64(bytes.Mapped), Own: int64(bytes.Own), Exact: true}
	if err != nil && ctx.Err() == nil {
		// Unreadable metadata, such as that of a lost parent, must not keep the content from being saved.
		log.G(ctx).WithField("volume", vol.ID).WithError(err).Warn("the exact usage of a snapshot cannot be read now")
		bytes.Mapped, err = s.pool.Mapped(ctx, vol.ID)
		usage = metadata.Usage{Bytes: int64(bytes.Mapped)}
	}
	if err != nil {
		return metadata.Usage{}, err
	}
	if sb == nil {
		found, err := s.fs.Identify(vol.Path)
		if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
			return metadata.Usage{}, err
		}
		sb = &found
	}
	usage.Inodes = int64(sb.Inodes)
	return usage, nil
}
