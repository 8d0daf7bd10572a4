package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

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
		return Classified(err)
	}
	if vol.Suspended {
		if err := s.pool.Resume(id); err != nil {
			return Classified(err)
		}
	}
	if needed || vol.OpenCount > 0 || pinned {
		return nil
	}
	return Classified(s.pool.Deactivate(ctx, id))
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

// SpareVolumes returns the volumes that are made ahead, and belong to no snapshot
// yet.
func (s *Snapshotter) SpareVolumes() map[thin.ID]bool { return s.spares.volumes() }
