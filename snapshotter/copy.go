package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// resumeTries is how often an operation tries to resume a volume before the reaper takes over.
const resumeTries = 3

// tryCopy calls copyInUse. If a copy would not be whole yet, it waits for busyStep and returns true, until
// the deadline.
func (s *Snapshotter) tryCopy(
	ctx context.Context, own pool.Volume, rec metadata.Snapshot, vol *pool.Volume, deadline time.Time,
) (again bool, err error) {
	err = s.copyInUse(ctx, own, rec, vol)
	isMounted, isLate := errors.Is(err, errStillMounted), time.Now().After(deadline)
	if !isMounted && (isLate || !isOneOf(err, errUnmounting, errOpenUnclean)) {
		return false, err
	}
	if isLate {
		return false, fmt.Errorf("%s is still mounted, without a journal: unmount it in all mount namespaces "+
			"(fuser -vm %s), and try again: %w", own.Path, own.Path, err)
	}
	if vol.ID != own.ID {
		s.abandon(vol.ID, err)
		*vol = own
	}
	select {
	case <-time.After(busyStep):
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// copyInUse sets vol to a frozen copy of a volume in use. It returns errStillMounted if no copy would be
// whole.
func (s *Snapshotter) copyInUse(ctx context.Context, own pool.Volume, rec metadata.Snapshot, vol *pool.Volume) error {
	if err := s.requireUndamaged(ctx, own); err != nil {
		return err
	}
	copied, wasFrozen, err := s.copyVolume(ctx, own, rec)
	if err != nil {
		return fmt.Errorf("copy volume %d, which is in use: %w", own.ID, err)
	}
	*vol = copied
	s.noteVolume(ctx, copied.ID)
	// gofail: var afterCopyInUse struct{}
	if isUnpack(rec) && !wasFrozen {
		if err := s.requireCleanCopy(own, copied, rec); err != nil {
			return err
		}
	}
	_, _, err = s.seal(ctx, copied, rec, true)
	return err
}

// requireUndamaged fails for a volume in use if its superblock shows that no copy would be whole. A client
// can still repair that, so the volume is not marked as one that lost writes. An I/O error marks it,
// because the kernel reports the error only once.
func (s *Snapshotter) requireUndamaged(ctx context.Context, own pool.Volume) error {
	sb, err := s.fs.Identify(own.Path)
	switch {
	case errors.Is(err, filesystem.ErrNotRecognised): // the caller looks at the copy
	case err != nil:
		return s.noteFlush(ctx, own.ID, err)
	case sb.Damage != "":
		return fmt.Errorf("%s: %w", sb.Damage, ErrDamaged)
	case sb.Unclean:
		return errStillMounted
	}
	return nil
}

// copyVolume creates and activates a writable copy of a volume in use. It freezes a mounted file system
// for that. wasFrozen is false if the volume is open without a mount, or is being mounted or unmounted.
func (s *Snapshotter) copyVolume(
	ctx context.Context, vol pool.Volume, rec metadata.Snapshot,
) (_ pool.Volume, wasFrozen bool, err error) {
	// A freeze writes back the file system, which would not end on a full pool.
	status, err := s.pool.Status(ctx)
	if err != nil {
		return pool.Volume{}, false, err
	}
	if err := poolError(status); err != nil {
		return pool.Volume{}, false, err
	}
	// Before Linux 5.17, a freeze does not report the errors of its writeback.
	wasMounted := s.fs.Mounted(vol.Path, rec.Filesystem)
	if wasMounted {
		if err := s.noteFlush(ctx, vol.ID, s.fs.Sync(vol.Path, rec.Filesystem)); err != nil {
			return pool.Volume{}, false, err
		}
	}
	// gofail: var afterSync struct{}
	copied, err := s.ids.takeToWrite(ctx)
	if err != nil {
		return pool.Volume{}, false, err
	}
	if err := s.noteFlush(ctx, vol.ID, s.pool.Suspend(ctx, vol.ID)); err != nil {
		s.ids.resolve(copied)
		if errors.Is(err, unix.EINVAL) { // from fs_bdev_freeze in fs/super.c
			err = fmt.Errorf("%w: %w", err, errUnmounting)
		}
		return pool.Volume{}, false, err
	}
	original, isCreated, hasReturned := vol.ID, false, false
	defer func() {
		if hasReturned {
			return
		}
		s.reaper.add(original, false) // resumes it after a panic
		if isCreated {
			s.abandon(copied, errPanic)
		} // otherwise a foreign volume may have the id: the next start looks for a volume with it
	}()
	// gofail: var afterSuspend struct{}
	wasFrozen = wasMounted && s.fs.Mounted(vol.Path, rec.Filesystem)
	err = s.pool.CreateSnap(ctx, copied, vol.ID)
	isCreated = err == nil
	// gofail: var afterCopy struct{}
	if resumeErr := s.resume(vol.ID); resumeErr != nil {
		err = errors.Join(err, resumeErr)
		s.reaper.add(vol.ID, false) // retried when the lock is free
	}
	// gofail: var afterResume struct{}
	if err == nil && s.volumes.hasWritesLost(original) { // marked after requireNoWritesLost
		err = metadata.ErrWritesLost
	}
	if err == nil {
		vol, err = s.pool.Activate(ctx, copied, rec.Size, false)
	}
	if err != nil {
		s.notCreated(copied, err)
	}
	hasReturned = true
	return vol, wasFrozen, err
}

// resume resumes a volume that this process suspended. Until then, processes in the container block.
func (s *Snapshotter) resume(id thin.ID) error {
	err := s.pool.Resume(id)
	for tries := 1; err != nil && tries < resumeTries; tries++ {
		time.Sleep(busyStep)
		err = s.pool.Resume(id)
	}
	return err
}
