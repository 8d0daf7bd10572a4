package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Prepare makes an active snapshot. It is there after any crash once Prepare has
// returned.
//
// A size label that is larger than the parent makes the file system larger; a
// smaller one is errdefs.ErrInvalidArgument. With less of the pool free than the
// operator wants to keep, it is errdefs.ErrResourceExhausted.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := bounded(ctx, s, func(ctx context.Context) ([]mount.Mount, error) { return s.prepare(ctx, key, parent, opts) })
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, s.explained(err))
	}
	return mounts, nil
}

func (s *Snapshotter) prepare(ctx context.Context, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	want, err := parseOptions(opts)
	if err != nil {
		return nil, err
	}
	origin, err := s.origin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	if parent == "" {
		if origin, err = s.emptyOrigin(ctx, want.bytes); err != nil {
			return nil, err
		}
	}
	rec := metadata.Snapshot{
		Key:        key,
		Parent:     parent,
		Kind:       snapshots.KindActive,
		Labels:     want.labels,
		Size:       origin.bytes,
		Filesystem: origin.filesystem,
	}
	if want.bytes != 0 {
		if want.bytes < origin.bytes {
			return nil, fmt.Errorf("a size of %d bytes was asked for, but its parent %q has %d: %w",
				want.bytes, parent, origin.bytes, errdefs.ErrInvalidArgument)
		}
		rec.Size = want.bytes
	}
	path, err := s.child(ctx, origin, rec)
	if err != nil {
		return nil, err
	}
	return s.mounts(rec, path), nil
}

// origin is the volume that a new snapshot begins as.
type origin struct {
	device     thin.ID
	filesystem string
	bytes      uint64
}

// origin returns the parent's volume, having seen that key is free: what fails
// here costs nothing.
func (s *Snapshotter) origin(ctx context.Context, key, parent string) (origin, error) {
	var o origin
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		if err := metadata.CheckKey(key); err != nil {
			return err
		}
		if tx.Exists(key) {
			return errdefs.ErrAlreadyExists
		}
		if parent == "" {
			return nil
		}
		rec, err := tx.Get(parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		if rec.Kind != snapshots.KindCommitted {
			return fmt.Errorf("parent %q is not committed: %w", parent, errdefs.ErrInvalidArgument)
		}
		o = origin{thin.ID(rec.Device), rec.Filesystem, rec.Size}
		return nil
	})
	return o, err
}

// emptyOrigin returns the base volume for a snapshot without a parent. One that
// is to be smaller than usual needs a base volume of its own.
func (s *Snapshotter) emptyOrigin(ctx context.Context, bytes uint64) (origin, error) {
	key := baseKey{s.config.Filesystem, s.config.BaseBytes}
	if bytes != 0 && bytes < key.bytes {
		key.bytes = bytes
	}
	base, err := s.base(ctx, key)
	return origin{thin.ID(base.Device), base.Filesystem, base.Size}, err
}

// orParentGone returns err, or that the parent does not exist, if it was removed
// after its record was read: its volume may have gone with it.
func (s *Snapshotter) orParentGone(ctx context.Context, parent string, from origin, err error) error {
	gone := s.store.View(ctx, func(tx *metadata.Tx) error { return parentThere(tx, parent, from) })
	if errdefs.IsNotFound(gone) {
		return gone
	}
	return err
}

// parentThere returns errdefs.ErrNotFound if the parent of which a volume was taken
// is no longer there.
func parentThere(tx *metadata.Tx, parent string, from origin) error {
	if parent == "" {
		return nil
	}
	if err := stillThere(tx, parent, from.device); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	return nil
}

// create puts down the record of a snapshot of a volume.
func (s *Snapshotter) create(ctx context.Context, rec metadata.Snapshot, from origin) error {
	return s.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := parentThere(tx, rec.Parent, from); err != nil {
			return err
		}
		return tx.Create(rec)
	})
}

// child makes the snapshot that rec describes but for its volume, and returns the
// device: that of a volume that was made ahead, if there is one.
func (s *Snapshotter) child(ctx context.Context, from origin, rec metadata.Snapshot) (path string, err error) {
	if rec.Size != from.bytes {
		return s.largerChild(ctx, from, rec)
	}
	if id, path, ok := s.spares.take(ctx, from); ok {
		// gofail: var afterTakeSpare struct{}
		return path, s.record(ctx, id, from, rec)
	}
	id, err := s.newVolume(ctx, from)
	if err != nil {
		return "", s.orParentGone(ctx, rec.Parent, from, err)
	}
	// The volume is there, and that is what a record stands for: to make it active
	// and to put down the record need not wait for each other. But nobody who sees
	// the record may make it active as well.
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		s.abandon(id, err)
		return "", err
	}
	defer unlock()
	recorded := make(chan error, 1)
	go func() { recorded <- s.record(ctx, id, from, rec) }()
	vol, err := s.pool.Activate(ctx, id, rec.Size, false)
	// gofail: var afterActivate struct{}
	if recordErr := <-recorded; recordErr != nil {
		return "", recordErr
	}
	if err != nil {
		return "", errors.Join(err, s.takeBack(context.WithoutCancel(ctx), id, rec.Key))
	}
	return vol.Path, s.inTime(ctx, id, rec.Key)
}

// inTime takes back the record of a snapshot, and returns why, if the time for making it
// was over before it was made: whoever asked for it may have been told that it failed,
// and may try again.
func (s *Snapshotter) inTime(ctx context.Context, id thin.ID, key string) error {
	if ctx.Err() == nil {
		return nil
	}
	return errors.Join(context.Cause(ctx), s.takeBack(context.WithoutCancel(ctx), id, key))
}

// takeBack removes the record of a snapshot that could not be made, unless somebody
// else was first to do so.
func (s *Snapshotter) takeBack(ctx context.Context, id thin.ID, key string) error {
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := stillThere(tx, key, id); err != nil {
			return err
		}
		_, err := tx.Remove(key, now())
		return err
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take back snapshot %q: %w", key, err)
	}
	s.reaper.addLater(id)
	return nil
}

// largerChild is child for a snapshot that is larger than its parent. There the
// record waits: it stands for a file system of that size.
func (s *Snapshotter) largerChild(ctx context.Context, from origin, rec metadata.Snapshot) (path string, err error) {
	id, path, err := s.activeChild(ctx, from, rec.Size)
	if err != nil {
		return "", s.orParentGone(ctx, rec.Parent, from, err)
	}
	if err := s.fs.Grow(path, rec.Filesystem, rec.Size); err != nil {
		s.abandon(id, err)
		return "", err
	}
	// gofail: var afterGrow struct{}
	return path, s.record(ctx, id, from, rec)
}

// record puts down that a new snapshot has the volume id, which was taken of an
// origin. The volume is deleted if that fails, or was too late.
func (s *Snapshotter) record(ctx context.Context, id thin.ID, from origin, rec metadata.Snapshot) error {
	s.working(ctx, id)
	s.volumes.made(id)
	rec.Device = uint32(id)
	rec.Created = now()
	rec.Updated = rec.Created
	// gofail: var beforeRecord struct{}
	if err := s.create(ctx, rec, from); err != nil {
		s.abandon(id, err)
		return err
	}
	// gofail: var afterRecord struct{}
	s.ids.settled(id)
	return s.inTime(ctx, id, rec.Key)
}

// newVolume makes a snapshot of a volume, which is in the pool for good then.
func (s *Snapshotter) newVolume(ctx context.Context, from origin) (thin.ID, error) {
	id, err := s.ids.take(ctx)
	if err != nil {
		return 0, err
	}
	s.working(ctx, id)
	// gofail: var beforeCreateSnap struct{}
	if err := s.pool.CreateSnap(ctx, id, from.device); err != nil {
		s.abandon(id, err)
		return 0, err
	}
	// gofail: var afterCreateSnap struct{}
	return id, nil
}

// activeChild makes a snapshot of a volume, and activates it.
func (s *Snapshotter) activeChild(ctx context.Context, from origin, bytes uint64) (thin.ID, string, error) {
	id, err := s.newVolume(ctx, from)
	if err != nil {
		return 0, "", err
	}
	vol, err := s.pool.Activate(ctx, id, bytes, false)
	if err != nil {
		s.abandon(id, err)
		return 0, "", err
	}
	// gofail: var afterActivateChild struct{}
	return id, vol.Path, nil
}
