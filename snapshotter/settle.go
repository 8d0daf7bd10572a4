package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// settle brings one volume to the state that the store wants. It can be repeated: the next call also
// repairs the effects of a crash.
//
// leftover allows the deletion of a volume without an owner: the store cannot tell a leftover of a crash
// from the volume of a running Prepare.
func (s *Snapshotter) settle(ctx context.Context, id thin.ID, leftover bool) error {
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if s.ids.isForeign(id) {
		return s.ids.disown(ctx, id)
	}
	// Read the pin before the store: a View is unpinned once it is recorded.
	pinned := s.volumes.pinned(id)
	state, err := s.stateOf(ctx, id)
	if err != nil {
		return err
	}
	switch state {
	case metadata.VolumeTrash:
		if pinned {
			return fmt.Errorf("volume %d is being read: %w", id, devmapper.ErrBusy)
		}
		return s.deleteTrash(ctx, id)
	case metadata.VolumeLeased:
		if leftover {
			return s.deleteLeftover(ctx, id)
		}
	case metadata.VolumeIdle, metadata.VolumeViewed:
		if !pinned {
			return s.deactivateUnused(ctx, id, state == metadata.VolumeViewed)
		}
	case metadata.VolumeInUse:
		return s.restore(ctx, id)
	case metadata.VolumeKept:
		return s.deactivateUnused(ctx, id, false)
	case metadata.VolumeUnknown:
	}
	return nil
}

// restore resumes the device of an active snapshot and makes it writable, after a Commit or a copy that was
// interrupted or could not undo its changes.
func (s *Snapshotter) restore(ctx context.Context, id thin.ID) error {
	vol, err := s.lookupResumed(ctx, id)
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err == nil && vol.ReadOnly {
		err = s.unseal(id)
	}
	return err
}

// lookupResumed returns an active volume, and resumes it. A process that has a suspended device open can
// neither close it nor end.
func (s *Snapshotter) lookupResumed(ctx context.Context, id thin.ID) (pool.Volume, error) {
	vol, err := s.pool.Lookup(ctx, id)
	if err == nil && vol.Suspended {
		err = s.pool.Resume(id)
		vol.Suspended = err != nil
	}
	return vol, err
}

func (s *Snapshotter) stateOf(ctx context.Context, id thin.ID) (state metadata.VolumeState, err error) {
	err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		state, err = tx.VolumeState(uint32(id))
		return err
	})
	return state, err
}

// deactivateUnused deactivates the volume of a committed snapshot, a base volume or a kept leftover. With
// Views it may stay active, but only read-only.
func (s *Snapshotter) deactivateUnused(ctx context.Context, id thin.ID, viewed bool) error {
	if !viewed {
		err := s.pool.Deactivate(ctx, id)
		if errors.Is(err, devmapper.ErrBusy) {
			_, resumeErr := s.lookupResumed(ctx, id)
			err = errors.Join(err, resumeErr)
		}
		return err
	}
	vol, err := s.lookupResumed(ctx, id)
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if vol.ReadOnly {
		return nil
	}
	return s.pool.Deactivate(ctx, id)
}

// deleteTrash deletes the volume of a removed snapshot, and then the trash entry. A crash in between
// leaves an entry without a volume, which is harmless.
func (s *Snapshotter) deleteTrash(ctx context.Context, id thin.ID) error {
	var trash metadata.TrashRecord
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		trash, err = tx.TrashEntry(uint32(id))
		return err
	})
	if err != nil {
		return err
	}
	active, err := s.prepareDeletion(ctx, id)
	if err != nil {
		return err
	}
	if s.config.Discard && trash.Size > 0 { // 0 for a leftover without mappings
		if s.copies.exist(id) { // a discard does not free the blocks that a copy shares
			return fmt.Errorf("a frozen copy of volume %d is being read: %w", id, devmapper.ErrBusy)
		}
		switch err := s.discard(ctx, id, active, trash.Size); {
		case errors.Is(err, devmapper.ErrBusy), ctx.Err() != nil:
			return err
		case errors.Is(err, thin.ErrNoDevice): // after a crash before ClearTrash
		case errors.Is(err, pool.ErrNameTaken), errors.Is(err, devmapper.ErrExists):
			return Classify(err) // retried when the name is free
		case err != nil:
			// Without a discard the pool still gets the space back.
			log.G(ctx).WithField("key", metadata.ShowKey(trash.Key)).WithField("device", s.pool.VolumePath(id)).
				WithError(err).Warn("deleting the volume of a removed snapshot without a discard")
		}
	}
	if err := s.deleteVolume(ctx, id); err != nil {
		return err
	}
	// gofail: var beforeClearTrash struct{}
	return s.store.Update(ctx, func(tx *metadata.Tx) error { return tx.ClearTrash(uint32(id)) })
}

// deleteLeftover deletes a volume without an owner: a spare, a frozen copy, or the leftover of a crash or a
// failed operation. A volume whose mappings the kernel lost stays, because its deletion could damage the
// pool. One that a client may have written to is kept.
func (s *Snapshotter) deleteLeftover(ctx context.Context, id thin.ID) error {
	if _, err := s.prepareDeletion(ctx, id); err != nil {
		return err
	}
	found, err := s.leftovers.kindOf(ctx, id)
	if err != nil {
		return fmt.Errorf("look for leftover volume %d: %w", id, err)
	}
	switch found {
	case volumeAbsent:
		s.ids.resolve(id)
		return nil
	case volumeBroken:
		log.G(ctx).WithField("device", s.pool.VolumePath(id)).Warn("leaving a leftover volume alone: " +
			"the kernel lost its mappings, and deleting it could damage the pool; it takes no space")
		s.ids.resolve(id)
		return nil
	case volumeOfClient:
		if kept, err := s.keepWritten(ctx, id); kept || err != nil {
			return err
		}
	case volumeOfThisRun, volumeOfThinsnap:
	}
	if s.config.Discard {
		if err := s.discardLeftover(ctx, id, found); err != nil {
			return err
		}
	}
	return s.deleteVolume(ctx, id)
}

// prepareDeletion deletes the spares and the served copy of a volume, and unmounts thinsnap's own mount of
// it. active is the active volume, or nil if none was found.
func (s *Snapshotter) prepareDeletion(ctx context.Context, id thin.ID) (active *pool.Volume, err error) {
	// gofail: var beforeDeleteVolume struct{}
	if served := s.copies.takeServed(id); served != 0 {
		s.deleteCopy(ctx, served)
	}
	if err := s.spares.retire(ctx, id); err != nil {
		return nil, err
	}
	if err := s.dropMount(id); err != nil {
		return nil, err
	}
	// gofail: var afterRetireSpares struct{}
	vol, err := s.lookupResumed(ctx, id)
	switch {
	case err == nil:
		return &vol, nil
	case vol.Suspended:
		return nil, err
	}
	return nil, nil
}

// discard returns the space of a volume to the loop file or disk below the pool; a deletion alone returns
// it only to the pool. The volume is looked up if active is nil.
func (s *Snapshotter) discard(ctx context.Context, id thin.ID, active *pool.Volume, bytes uint64) (err error) {
	if active == nil {
		var vol pool.Volume
		vol, err = s.pool.Lookup(ctx, id)
		active = &vol
	}
	switch {
	case err == nil && active.OpenCount > 0:
		return fmt.Errorf("volume %d is to be deleted, but is in use: %w", id, devmapper.ErrBusy)
	case err == nil && active.ReadOnly:
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
	if err := s.pool.Discard(ctx, id, s.discardTurn); err != nil {
		return fmt.Errorf("discard volume %d: %w", id, err)
	}
	return nil
}

// discardTurn waits for the turn of a piece of a volume. Two concurrent discards would keep the blocks that
// both volumes map: each has a reference until it ends (process_prepared_discard_passdown_pt1 in
// drivers/md/dm-thin.c). Copies and a stop can come between two pieces.
func (s *Snapshotter) discardTurn(ctx context.Context) (leave func(), err error) {
	return s.discarding.lock(ctx, struct{}{})
}

func (s *Snapshotter) deleteVolume(ctx context.Context, id thin.ID) error {
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
	if original := s.copies.forget(id); original != 0 {
		s.reaper.wake(original) // its deletion may wait for that
	}
	s.leftovers.noteDeleted(id)
	s.ids.resolve(id)
	return nil
}

// abandon deletes the volume of a failed operation in the background, with two exceptions. A volume that
// already had the id is foreign, and stays, also after a restart. If the record may have been written, only
// the next start can tell whether the volume has an owner.
func (s *Snapshotter) abandon(id thin.ID, err error) {
	logger := log.L.WithField("device", s.pool.VolumePath(id)).WithError(err)
	switch {
	case errors.Is(err, thin.ErrExists):
		logger.Error("the pool has a foreign volume with an id that thinsnap never used: does another program use the pool?")
		if err := s.ids.disown(context.Background(), id); err != nil {
			log.L.WithError(err).Error("cannot record the foreign volume, trying again; a restart before that would delete " +
				"the volume as a leftover")
			s.reaper.add(id, false)
		}
	case errors.Is(err, metadata.ErrInDoubt):
		logger.Error("metadata store is in an unknown state; restart thinsnap once its disk is healthy")
	default:
		s.reaper.add(id, true)
	}
}

// notCreated is abandon for a volume that may not have been created. If it was not, a volume with that id
// is foreign, and is not deleted.
func (s *Snapshotter) notCreated(id thin.ID, err error) {
	if errors.Is(err, thin.ErrNotDone) && !errors.Is(err, thin.ErrExists) {
		s.ids.resolve(id)
		return
	}
	s.abandon(id, err)
}

// SettleDevice brings the mapped device of one volume to the state that the store wants, and deletes no
// volume. It resumes a suspended device, unmounts thinsnap's own mount that no active snapshot needs, and
// deactivates a device that is unneeded and unused.
func (s *Snapshotter) SettleDevice(ctx context.Context, id thin.ID) error {
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	pinned := s.volumes.pinned(id) // before the store is read, as in settle
	state, err := s.stateOf(ctx, id)
	if err != nil {
		return err
	}
	needed := state == metadata.VolumeInUse || state == metadata.VolumeViewed || state == metadata.VolumeLeased
	if !needed {
		if err := s.dropMount(id); err != nil {
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
