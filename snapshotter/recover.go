package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// verifyPool compares the pool with the store's record of it, without activating a volume.
func (s *Snapshotter) verifyPool(ctx context.Context) error {
	// A pool that has come back takes Commits, and each raises the transaction id of both.
	unlock, err := s.ids.stamping.lock(ctx, struct{}{})
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.store.Pool(ctx)
	if err != nil {
		return err
	}
	status, err := s.pool.Status(ctx)
	if err != nil {
		return Classify(err)
	}
	if status.Mode == thin.ModeFail || status.Mode == thin.ModeError {
		return fmt.Errorf("pool %s: %w", rec.Name, errFailed) // the rest of the status is not known
	}
	mismatch := func(what string, recorded, found uint64) error {
		return fmt.Errorf("pool %s does not match the store: its %s is %d, but should be %d; "+
			"nothing was changed: restore the store and the pool from the same moment, or start over with "+
			"`thinsnap pool destroy`: %w",
			rec.Name, what, found, recorded, errdefs.ErrFailedPrecondition)
	}
	if status.BlockBytes != rec.BlockSize {
		return mismatch("block size", rec.BlockSize, status.BlockBytes)
	}
	if rec.Foreign() {
		return nil // its transaction id is not ours
	}
	// A lease is recorded before it is stamped in the pool: after a crash the pool may be one
	// behind.
	if status.TransactionID != rec.TransactionID && status.TransactionID+1 != rec.TransactionID {
		return mismatch("transaction id", rec.TransactionID, status.TransactionID)
	}
	return nil
}

// recover finishes or undoes what an earlier run left unfinished: it has every volume that may need
// it settled in the background. Its cost does not grow with the number of snapshots.
func (s *Snapshotter) recover(ctx context.Context) error {
	active, err := s.pool.Active(ctx)
	if err != nil {
		return err
	}
	if err := s.resumeSuspended(active); err != nil {
		return err
	}
	if err := s.removeWithoutTable(ctx, active); err != nil {
		return err
	}
	if err := s.unsealActive(ctx, active); err != nil {
		return err
	}
	// gofail: var afterResumeSuspended struct{}
	if err := s.forgoUnproved(ctx); err != nil {
		return err
	}
	unowned := 0
	err = s.store.View(ctx, func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		if err != nil {
			return err
		}
		for _, lease := range leases {
			unowned += s.recoverLease(tx, lease)
		}
		trash, err := tx.Trash()
		for _, t := range trash {
			s.reaper.add(thin.ID(t.VolumeID), false)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range active {
		s.reaper.add(v.ID, false)
	}
	log.G(ctx).WithField("unowned_ids", unowned).WithField("active", len(active)).Info("store and pool agree; settling " +
		"volumes in the background")
	return nil
}

// recoverLease has every id of a lease that nothing owns settled as a leftover, and returns their
// number: a crash between the creation of a volume and its record leaves one.
func (s *Snapshotter) recoverLease(tx *metadata.Tx, lease metadata.LeaseRecord) int {
	var unowned []uint32
	for id := lease.First; id <= lease.Last; id++ {
		// The index of owners is enough, and a start must not fail because a record cannot be read.
		if _, owned := tx.Owner(id); !owned {
			unowned = append(unowned, id)
		}
	}
	s.leftovers.add(lease)
	s.ids.resume(lease, unowned)
	for _, id := range unowned {
		s.reaper.add(thin.ID(id), true)
	}
	return len(unowned)
}

// forgoUnproved gives up what an earlier run left to be deleted in a foreign pool that cannot be proved
// to be the same: it has no UUID, and the store has neither a base volume nor an adopted one that is
// left. A volume with an id of the leases, or of the trash, may be foreign.
func (s *Snapshotter) forgoUnproved(ctx context.Context) error {
	// A transaction waits for the disk even if it changes nothing.
	rec, err := s.store.Pool(ctx)
	if err != nil || rec.Identified() {
		return err
	}
	var trash []metadata.TrashRecord
	proved := false
	err = s.store.View(ctx, func(tx *metadata.Tx) error {
		bases, err := tx.Bases()
		if err != nil {
			return err
		}
		adopted, err := tx.AdoptedWitnesses()
		if err != nil {
			return err
		}
		proved = len(bases)+len(adopted) > 0 // verifyIdentity has found one of them
		trash, err = tx.Trash()
		return err
	})
	if err != nil || proved {
		return err
	}
	if err := s.closeLeases(ctx); err != nil {
		return err
	}
	return s.keepTrash(ctx, trash, rec.BlockSize)
}

func (s *Snapshotter) closeLeases(ctx context.Context) error {
	closed := 0
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		if err != nil {
			return err
		}
		for _, lease := range leases {
			if err := tx.CloseLease(lease.First); err != nil {
				return err
			}
		}
		closed = len(leases)
		return nil
	})
	if closed > 0 && err == nil {
		log.G(ctx).Warn("an interrupted start may have left an empty volume in the foreign pool; thinsnap does not delete " +
			"it: `thinsnap check` lists it")
	}
	return err
}

// keepTrash keeps volumes of removed snapshots as leftovers. The base volume that this start creates
// would prove the next one.
func (s *Snapshotter) keepTrash(ctx context.Context, trash []metadata.TrashRecord, blockBytes uint64) error {
	if len(trash) == 0 {
		return nil
	}
	var kept []metadata.KeptRecord
	for _, t := range trash {
		writes, err := s.pool.Writes(ctx, thin.ID(t.VolumeID))
		if errors.Is(err, thin.ErrNoDevice) {
			continue
		}
		if err != nil { // a start does not fail for a volume that cannot be read
			log.G(ctx).WithError(err).WithField("volume", t.VolumeID).Warn("cannot read what a removed snapshot's volume maps")
		}
		kept = append(kept, metadata.KeptRecord{
			VolumeID: t.VolumeID, Mapped: writes.Mapped * blockBytes, Size: t.Size, Found: now(),
		})
	}
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, t := range trash {
			if err := tx.ClearTrash(t.VolumeID); err != nil {
				return err
			}
		}
		for _, k := range kept {
			if err := tx.Keep(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep the volumes of removed snapshots: %w", err)
	}
	if len(kept) > 0 {
		log.G(ctx).WithField("volumes", len(kept)).Warn("keeping the volumes of removed snapshots: nothing shows that this " +
			"is the pool that the store belongs to: `thinsnap leftovers` lists them")
	}
	return nil
}

// resumeSuspended resumes the volumes that a crash in the middle of a Commit left suspended:
// processes in a container may wait for one.
func (s *Snapshotter) resumeSuspended(volumes []pool.Volume) error {
	var err error
	for _, v := range volumes {
		if !v.Suspended {
			continue
		}
		// The kernel suspends a device that it removes (__dm_destroy in drivers/md/dm.c).
		if resumeErr := s.pool.Resume(v.ID); !errors.Is(resumeErr, devmapper.ErrNotFound) {
			err = errors.Join(err, resumeErr)
		}
	}
	return err
}

// unsealActive has the devices of active snapshots accept writes again that a crash in the middle of
// a Commit left read-only.
func (s *Snapshotter) unsealActive(ctx context.Context, volumes []pool.Volume) error {
	for _, v := range volumes {
		if !v.ReadOnly || !v.Device.Live {
			continue
		}
		state, err := s.stateOf(ctx, v.ID)
		if err != nil {
			continue // a start does not fail for a record that cannot be read
		}
		if state == metadata.VolumeInUse {
			// A crash right after its activation has left it without a node; Lookup makes that.
			if err := s.restore(ctx, v.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeWithoutTable removes the mapped devices that a crash left without a table: such a volume is
// not active, but looks as if it were. Lookup removes them.
func (s *Snapshotter) removeWithoutTable(ctx context.Context, volumes []pool.Volume) error {
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
