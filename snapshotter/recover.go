package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// verifyPool holds the pool against what the store remembers of it, as far as
// that can be seen without activating anything.
func (s *Snapshotter) verifyPool(ctx context.Context) error {
	rec, err := s.store.Pool(ctx)
	if err != nil {
		return err
	}
	status, err := s.pool.Status(ctx)
	if err != nil {
		return Classify(err)
	}
	if status.Mode == thin.ModeFail || status.Mode == thin.ModeError {
		return fmt.Errorf("pool %s: %w", rec.Name, errFailed) // the kernel tells no more of it
	}
	mismatch := func(what string, remembered, found uint64) error {
		return fmt.Errorf("pool %s is not as the store remembers it: its %s is %d, and should be %d; "+
			"nothing was changed: restore the store and the pool from the same moment, or start over with `thinsnap pool destroy`: %w",
			rec.Name, what, found, remembered, errdefs.ErrFailedPrecondition)
	}
	if status.BlockBytes != rec.BlockSize {
		return mismatch("block size", rec.BlockSize, status.BlockBytes)
	}
	if rec.Foreign() {
		return nil // its transaction id is not ours
	}
	// A lease is recorded first and stamped in the pool then: after a crash the
	// pool may be one behind.
	if status.TransactionID != rec.TransactionID && status.TransactionID+1 != rec.TransactionID {
		return mismatch("transaction id", rec.TransactionID, status.TransactionID)
	}
	return nil
}

// recover finishes or undoes what an earlier run left half done. All but the
// looking is done in the background, and none of it grows with the number of
// snapshots.
func (s *Snapshotter) recover(ctx context.Context) error {
	volumes, err := s.pool.Active(ctx)
	if err != nil {
		return err
	}
	if err := s.resumeSuspended(volumes); err != nil {
		return err
	}
	if err := s.removeHalfMade(ctx, volumes); err != nil {
		return err
	}
	// gofail: var afterResumeSuspended struct{}
	if err := s.giveUpUnproven(ctx); err != nil {
		return err
	}
	leftovers := 0
	err = s.store.View(ctx, func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		if err != nil {
			return err
		}
		for _, lease := range leases {
			unsettled := make(map[uint32]struct{})
			for id := lease.First; id <= lease.Last; id++ {
				if _, owned := tx.Owner(id); !owned {
					unsettled[id] = struct{}{}
				}
			}
			leftovers += len(unsettled)
			ids := slices.Collect(maps.Keys(unsettled))
			s.leftovers.add(lease)
			s.ids.resume(lease, unsettled)
			for _, id := range ids {
				s.reaper.add(thin.ID(id), true)
			}
		}
		trash, err := tx.Trash()
		for _, t := range trash {
			s.reaper.add(thin.ID(t.Device), false)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range volumes {
		s.reaper.add(v.ID, false)
	}
	log.G(ctx).WithField("unsettled", leftovers).WithField("active", len(volumes)).Info("store and pool in line")
	return nil
}

// giveUpUnproven forgets the ids that an earlier run has leased in a pool that somebody
// else made, as long as nothing tells that it is the same pool: it has no UUID, and there
// is no base volume in it yet. What is there with such an id may be another's.
func (s *Snapshotter) giveUpUnproven(ctx context.Context) error {
	// A transaction that changes nothing waits for the disk all the same.
	if rec, err := s.store.Pool(ctx); err != nil || !rec.Foreign() || rec.Existing.UUID != "" {
		return err
	}
	given := 0
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		given = 0
		bases, err := tx.Bases()
		if err != nil || len(bases) > 0 {
			return err
		}
		leases, err := tx.Leases()
		if err != nil {
			return err
		}
		for _, lease := range leases {
			if err := tx.CloseLease(lease.First); err != nil {
				return err
			}
		}
		given = len(leases)
		return nil
	})
	if given > 0 && err == nil {
		log.G(ctx).Warn("a start that was interrupted may have left an empty volume in the pool, which is left alone: `thinsnap check` lists it")
	}
	return err
}

// resumeSuspended lets volumes go on that a crash in the middle of a Commit left
// suspended: somebody's container may be waiting on one.
func (s *Snapshotter) resumeSuspended(volumes []pool.Volume) error {
	var err error
	for _, v := range volumes {
		if v.Suspended {
			err = errors.Join(err, s.pool.Resume(v.ID))
		}
	}
	return err
}

// removeHalfMade removes the devices that a crash left without a table: such a
// volume is not active, and must not look as if it were.
func (s *Snapshotter) removeHalfMade(ctx context.Context, volumes []pool.Volume) error {
	for _, v := range volumes {
		if v.Device.Live {
			continue
		}
		if _, err := s.pool.Lookup(ctx, v.ID); err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			return err
		}
	}
	return nil
}
