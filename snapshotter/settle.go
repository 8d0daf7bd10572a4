package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// wanted is what the store wants of a volume that is not being worked with.
type wanted int

const (
	// keep it as it is.
	keep wanted = iota
	// idle: it need not be active.
	idle
	// readOnly: if it is active, then only read-only.
	readOnly
	// gone: it is to be deleted.
	gone
)

// settle makes a volume what the store says it should be. It can be repeated,
// and any crash in the middle of it is made good by calling it again.
func (s *Snapshotter) settle(ctx context.Context, id thin.ID, leftover bool) error {
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if s.ids.isForeign(id) {
		return s.ids.disown(ctx, id)
	}
	// A View in the making has pinned it; it settles the volume again if it fails.
	// This is asked before the store is: a View that was recorded in between has
	// let go of the pin by then.
	pinned := s.volumes.pinned(id)
	want, trash, err := s.wanted(ctx, id, leftover)
	if err != nil {
		return err
	}
	switch want {
	case gone:
		// gofail: var beforeDeleteVolume struct{}
		return s.delete(ctx, id, trash)
	case idle, readOnly:
		if pinned {
			return nil
		}
		vol, err := s.pool.Lookup(ctx, id)
		if errors.Is(err, devmapper.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if want == readOnly && vol.ReadOnly {
			return nil
		}
		return s.pool.Deactivate(ctx, id)
	}
	return nil
}

// wanted asks the store what is to become of a volume, and, if it is to be
// deleted and stands in the trash, for its entry there.
func (s *Snapshotter) wanted(ctx context.Context, id thin.ID, leftover bool) (wanted, metadata.TrashRecord, error) {
	want, trash := keep, metadata.TrashRecord{}
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(uint32(id))
		switch {
		case !owned && leftover:
			want = gone
		case !owned:
		case owner.Kind == metadata.OwnerTrash:
			want = gone
			var err error
			trash, err = tx.TrashEntry(uint32(id))
			return err
		case owner.Kind == metadata.OwnerSnapshot:
			rec, err := tx.Get(owner.Key)
			if err != nil || rec.Kind != snapshots.KindCommitted {
				return err
			}
			fallthrough
		default:
			views, err := tx.Views(uint32(id))
			if err != nil {
				return err
			}
			want = idle
			if views > 0 {
				want = readOnly
			}
		}
		return nil
	})
	return want, trash, err
}

// delete deletes a volume from the pool and its entry from the trash, in this
// order: a crash in between leaves an entry whose volume is gone, which is fine.
func (s *Snapshotter) delete(ctx context.Context, id thin.ID, trash metadata.TrashRecord) error {
	if err := s.spares.retire(ctx, id); err != nil {
		return err
	}
	if err := s.unshare(id); err != nil {
		return err
	}
	// gofail: var afterRetireSpares struct{}
	inTrash := trash.Device != 0
	if !inTrash {
		found, err := s.leftovers.presence(ctx, id)
		if err != nil {
			return fmt.Errorf("look for leftover volume %d: %w", id, err)
		}
		switch found {
		case absent:
			s.ids.settled(id)
			return nil
		case broken:
			log.G(ctx).WithField("device", s.pool.VolumePath(id)).Warn("the kernel has lost the mappings of a volume that nobody owns, " +
				"and could damage the pool if it were deleted: it is left alone; it takes no space")
			s.ids.settled(id)
			return nil
		case recent, whole:
		}
	}
	if inTrash && s.config.Discard {
		switch err := s.discard(ctx, id, trash.Size); {
		case errors.Is(err, devmapper.ErrBusy), ctx.Err() != nil:
			return err
		case errors.Is(err, pool.ErrNameTaken), errors.Is(err, devmapper.ErrExists):
			return Classified(err) // it is tried again when the name is free
		case err != nil:
			// Space that cannot be given back now is no reason to keep the volume.
			log.G(ctx).WithField("key", trash.Key).WithField("device", s.pool.VolumePath(id)).
				WithError(err).Warn("the volume of a removed snapshot is deleted without a discard")
		}
	}
	// gofail: var afterDiscard struct{}
	if err := s.pool.Deactivate(ctx, id); err != nil {
		return fmt.Errorf("deactivate volume %d for deletion: %w", id, err)
	}
	// gofail: var afterDeactivate struct{}
	if err := s.pool.Delete(ctx, id); err != nil && !errors.Is(err, thin.ErrNoDevice) {
		return fmt.Errorf("delete volume %d: %w", id, err)
	}
	// gofail: var afterDelete struct{}
	s.volumes.forget(id)
	s.leftovers.deleted(id)
	s.ids.settled(id)
	if !inTrash {
		return nil
	}
	// gofail: var beforeClearTrash struct{}
	return s.store.Update(ctx, func(tx *metadata.Tx) error { return tx.ClearTrash(uint32(id)) })
}

// removeSpare deletes a volume that nobody asked for.
func (s *Snapshotter) removeSpare(ctx context.Context, id thin.ID) {
	if err := s.settle(ctx, id, true); err != nil {
		s.reaper.add(id, true)
	}
}

// discard gives a volume's space back, which deleting alone does not: it returns
// blocks to the pool, but not to the loop file or the disk below.
func (s *Snapshotter) discard(ctx context.Context, id thin.ID, bytes uint64) error {
	vol, err := s.pool.Lookup(ctx, id)
	switch {
	case err == nil && vol.OpenCount > 0:
		return fmt.Errorf("volume %d is to be deleted, but is in use: %w", id, devmapper.ErrBusy)
	case err == nil && vol.ReadOnly:
		if err := s.pool.Deactivate(ctx, id); err != nil {
			return err
		}
		// gofail: var afterDeactivateToDiscard struct{}
		_, err = s.pool.Activate(ctx, id, bytes, false)
	case errors.Is(err, devmapper.ErrNotFound):
		_, err = s.pool.Activate(ctx, id, bytes, false)
	}
	if err != nil {
		return err
	}
	// gofail: var beforeDiscard struct{}
	if err := s.pool.Discard(ctx, id); err != nil {
		return fmt.Errorf("discard volume %d: %w", id, err)
	}
	return nil
}
