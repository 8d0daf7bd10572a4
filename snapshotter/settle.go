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
			return Classify(err) // it is tried again when the name is free
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

// abandon has the volume deleted of an operation that failed. There are two
// exceptions: if the pool had a volume of that id already, it is not ours to
// delete, now or after a restart; and if it is in doubt whether the record was written, only the next
// start can tell whose the volume is.
func (s *Snapshotter) abandon(id thin.ID, err error) {
	switch {
	case errors.Is(err, thin.ErrExists):
		log.L.WithField("device", s.pool.VolumePath(id)).WithError(err).Error("the pool has a volume with an id that was never used: does somebody else use the pool?")
		if err := s.ids.disown(context.Background(), id); err != nil {
			log.L.WithError(err).Error("it is tried again; until then, a restart would take it for ours")
			s.reaper.add(id, false)
		}
	case errors.Is(err, metadata.ErrInDoubt):
		log.L.WithField("device", s.pool.VolumePath(id)).WithError(err).Error("the store is out of order: restart thinsnap once its disk is well")
	default:
		s.reaper.add(id, true)
	}
}

// Mend brings the kernel's side of one volume into line with the store: a device
// that is suspended is resumed, a mount of ours that no active snapshot needs is
// given up, and a device that nobody needs and nobody uses is deactivated. It
// deletes nothing.
func (s *Snapshotter) Mend(ctx context.Context, id thin.ID) error {
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	pinned := s.volumes.pinned(id) // before the store is asked, as in settle
	needed, err := s.needed(ctx, id)
	if err != nil {
		return err
	}
	if !needed {
		if err := s.unshare(id); err != nil {
			return err
		}
	}
	vol, err := s.pool.Lookup(ctx, id)
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err != nil {
		return Classify(err)
	}
	if vol.Suspended {
		if err := s.pool.Resume(id); err != nil {
			return Classify(err)
		}
	}
	if needed || vol.OpenCount > 0 || pinned {
		return nil
	}
	return Classify(s.pool.Deactivate(ctx, id))
}

// needed tells whether a volume is, or may become, somebody's to write to or to
// look at.
func (s *Snapshotter) needed(ctx context.Context, id thin.ID) (needed bool, err error) {
	err = s.store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(uint32(id))
		switch {
		case !owned:
			leases, err := tx.Leases()
			for _, l := range leases {
				needed = needed || l.First <= uint32(id) && uint32(id) <= l.Last
			}
			return err
		case owner.Kind == metadata.OwnerSnapshot:
			rec, err := tx.Get(owner.Key)
			if err != nil || rec.Kind != snapshots.KindCommitted {
				needed = true
				return err
			}
		}
		views, err := tx.Views(uint32(id))
		needed = views > 0
		return err
	})
	return needed, err
}
