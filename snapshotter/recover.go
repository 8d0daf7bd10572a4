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
	// The lock excludes Commits, which continue once a pool is reopened and raise the transaction ids of
	// store and pool.
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
		return nil // the program that made the pool sets the transaction id
	}
	// The store raises its id before the pool is stamped: after a crash, the pool may be one behind.
	if status.TransactionID != rec.TransactionID && status.TransactionID+1 != rec.TransactionID {
		return mismatch("transaction id", rec.TransactionID, status.TransactionID)
	}
	return nil
}

// recover finishes or undoes interrupted operations of an earlier run: the reaper settles each volume that
// they may have left behind. The cost does not grow with the number of snapshots.
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
	if err := s.protectForeign(ctx); err != nil {
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
		if err != nil {
			return err
		}
		lost, err := tx.WritesLost()
		for _, id := range lost {
			s.volumes.noteWritesLost(thin.ID(id))
			s.volumes.noteWritesLostStored([]thin.ID{thin.ID(id)})
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

// recoverLease adds the unowned ids of a lease to the reaper, as leftovers, and returns their number. A
// crash between the creation of a volume and that of its record leaves a volume with such an id.
func (s *Snapshotter) recoverLease(tx *metadata.Tx, lease metadata.LeaseRecord) int {
	var unowned []uint32
	for id := lease.First; id <= lease.Last; id++ {
		// The index of owners suffices, so an unreadable record does not fail the start.
		if _, owned := tx.Owner(id); !owned {
			unowned = append(unowned, id)
		}
	}
	s.leftovers.add(lease)
	s.ids.addEarlier(lease, unowned)
	for _, id := range unowned {
		s.reaper.add(thin.ID(id), true)
	}
	return len(unowned)
}

// protectForeign closes the open leases and keeps the trash, if the identity of a foreign pool is not
// proved: a foreign volume may have an id of a lease or of the trash. Such a pool has no UUID, and the
// store has neither a base volume nor an adopted volume.
func (s *Snapshotter) protectForeign(ctx context.Context) error {
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
		proved = len(bases)+len(adopted) > 0 // verifyIdentity has verified one of them
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

// keepTrash keeps the volumes of removed snapshots as leftovers. Otherwise the next start would delete
// them, because the new base volume of this start will prove the pool's identity.
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
			log.G(ctx).WithError(err).WithField("volume", t.VolumeID).Warn("cannot read the mappings of a removed volume")
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

// resumeSuspended resumes the volumes that a crash during a copy left suspended: processes in a container
// may wait for them.
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

// unsealActive makes each active snapshot's device writable again if a crash during a Commit left it
// read-only.
func (s *Snapshotter) unsealActive(ctx context.Context, volumes []pool.Volume) error {
	for _, v := range volumes {
		if !v.ReadOnly || !v.Device.Live {
			continue
		}
		state, err := s.stateOf(ctx, v.ID)
		if err != nil {
			continue // an unreadable record does not fail the start
		}
		if state == metadata.VolumeInUse {
			// A crash right after the activation may have left it without a node; Lookup creates that.
			if err := s.restore(ctx, v.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeWithoutTable removes mapped devices that a crash left without a table: these volumes seem active,
// but are not. Lookup removes the device.
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
