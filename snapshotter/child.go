package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

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

// newSpare makes a child of a volume that snapshots are still made of, unless the
// pool is short of space.
func (s *Snapshotter) newSpare(ctx context.Context, from origin) (thin.ID, string, error) {
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(uint32(from.device))
		if !owned || owner.Kind == metadata.OwnerTrash {
			return fmt.Errorf("volume %d: %w", from.device, errdefs.ErrNotFound)
		}
		return nil
	})
	if err == nil {
		err = s.checkPool(ctx)
	}
	if err != nil {
		return 0, "", err
	}
	return s.activeChild(ctx, from, from.bytes)
}
