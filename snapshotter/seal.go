package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// seal makes a volume fit to be committed: its file system is whole, its content is on stable
// storage, and its device refuses writes. A frozen copy is one of a volume in use.
//
// If the volume returned is in use, it was opened meanwhile; it is not sealed then.
func (s *Snapshotter) seal(
	ctx context.Context, vol pool.Volume, rec metadata.Snapshot, frozenCopy bool,
) (pool.Volume, error) {
	if err := s.makeWhole(vol, rec, frozenCopy); err != nil {
		return vol, s.noteFlush(vol.ID, err)
	}
	// A client that is late with the mount of its Prepare must not write to a layer.
	if err := s.pool.SetReadOnly(vol.ID, true); err != nil {
		return vol, err
	}
	// gofail: var beforeFlush struct{}
	if err := s.noteFlush(vol.ID, s.pool.Flush(ctx, vol.ID)); err != nil {
		return vol, err
	}
	// gofail: var afterFlush struct{}
	vol, err := s.pool.Lookup(ctx, vol.ID)
	if err != nil || vol.OpenCount == 0 || frozenCopy {
		return vol, err
	}
	return vol, s.unseal(vol.ID)
}

// unseal has a device accept writes again.
func (s *Snapshotter) unseal(id thin.ID) error {
	if err := s.pool.SetReadOnly(id, false); err != nil {
		return fmt.Errorf("make volume %d writable again: %w", id, err)
	}
	return nil
}

// makeWhole fails unless the file system of a volume that is not in use is whole: the kernel has
// found nothing wrong with it, and it can be mounted from a read-only device. It replays the journal
// of an ext4, or the log of an xfs, if that is needed. Nothing else is repaired.
func (s *Snapshotter) makeWhole(vol pool.Volume, rec metadata.Snapshot, frozenCopy bool) error {
	for recovered := false; ; recovered = true {
		// A frozen xfs always needs it.
		needed := frozenCopy && !recovered && rec.Filesystem == filesystem.XFS
		if !needed {
			var err error
			if needed, err = s.needsRecovery(vol, rec); err != nil || !needed {
				return err
			}
		}
		switch {
		case recovered:
			return fmt.Errorf("its log cannot be replayed: %w", errDamaged)
		case isUnpack(rec) && !frozenCopy:
			return fmt.Errorf("it was not unmounted cleanly, and may lack what was unpacked last: %w", errDamaged)
		}
		if err := s.unseal(vol.ID); err != nil {
			return err
		}
		if err := s.fs.Recover(vol.Path, rec.Filesystem); err != nil {
			if sb, identifyErr := s.fs.Identify(vol.Path); identifyErr == nil && sb.Damage != "" {
				err = fmt.Errorf("%s: %w: %w", sb.Damage, err, errDamaged)
			}
			return explainMount(err)
		}
		// gofail: var afterRecover struct{}
	}
}

// needsRecovery returns whether a file system has a journal or log that must be replayed. An ext4
// tells in its superblock. For an xfs the device is made read-only, and the kernel looks. It fails
// if the file system is damaged.
func (s *Snapshotter) needsRecovery(vol pool.Volume, rec metadata.Snapshot) (bool, error) {
	sb, err := s.identify(vol, rec)
	if err != nil || sb.Type != rec.Filesystem {
		return false, err
	}
	if err := sb.Mountable(); err != nil {
		return false, explainMount(err)
	}
	if sb.Unclean {
		return false, fmt.Errorf("it was mounted without a journal, and not unmounted cleanly: %w", errDamaged)
	}
	if sb.Type != filesystem.XFS {
		return sb.NeedsRecovery, nil
	}
	// An xfs that could write nothing to its log, from its mount to its unmount, looks as it did before.
	if isUnpack(rec) && s.volumes.hasCreatedLSN(vol.ID, sb.LSN) {
		return false, fmt.Errorf("it was never unmounted cleanly: %w", errDamaged)
	}
	if err := s.pool.SetReadOnly(vol.ID, true); err != nil {
		return false, err
	}
	err = s.fs.Verify(vol.Path, filesystem.XFS)
	if errors.Is(err, filesystem.ErrNeedsRecovery) {
		return true, nil
	}
	return false, explainMount(err)
}

// identify returns the superblock of a volume's file system, and fails if that is damaged. The type
// is "" if it is none: a virtual machine can have written anything.
func (s *Snapshotter) identify(vol pool.Volume, rec metadata.Snapshot) (filesystem.Superblock, error) {
	// A direct read first writes back cached blocks, and returns the error of that.
	sb, err := s.fs.Identify(vol.Path)
	switch {
	case errors.Is(err, filesystem.ErrNotRecognised) && isUnpack(rec):
		return sb, fmt.Errorf("%w: %w", err, errDamaged)
	case errors.Is(err, filesystem.ErrNotRecognised):
		return filesystem.Superblock{}, nil
	case err != nil:
		return sb, err
	case sb.Damage != "":
		return sb, fmt.Errorf("%s: %w", sb.Damage, errDamaged)
	}
	return sb, nil
}

// explainMount classifies an error of a mount that says something about the file system.
func explainMount(err error) error {
	switch {
	case isOneOf(err, unix.EUCLEAN, unix.EBADMSG) && !errors.Is(err, errDamaged):
		return fmt.Errorf("%w: %w", err, errDamaged)
	case errors.Is(err, filesystem.ErrUnsafe):
		return fmt.Errorf("%w: change the file system where it is used, or remove the snapshot: %w", err,
			errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: this kernel cannot mount it (see dmesg): %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// awaitUnmount waits up to busyWait until a volume that cannot be copied is not in use: an ext4 that
// is mounted without its journal is not whole before it is unmounted, not even while it is frozen.
func (s *Snapshotter) awaitUnmount(ctx context.Context, vol pool.Volume, rec metadata.Snapshot) (pool.Volume, error) {
	for deadline := time.Now().Add(busyWait); vol.OpenCount > 0 && rec.Filesystem == filesystem.Ext4; {
		sb, err := s.identify(vol, rec)
		if err != nil {
			return vol, s.noteFlush(vol.ID, err)
		}
		if !sb.Unclean {
			return vol, nil
		}
		if time.Now().After(deadline) {
			return vol, fmt.Errorf("%s is still mounted, without a journal: unmount it in all mount namespaces (fuser -vm %s), "+
				"and try again: %w", vol.Path, vol.Path, errdefs.ErrUnavailable)
		}
		select {
		case <-time.After(busyStep):
		case <-ctx.Done():
			return vol, context.Cause(ctx)
		}
		if vol, err = s.pool.Lookup(ctx, vol.ID); err != nil {
			return vol, err
		}
	}
	return vol, nil
}

// noteFlush returns err, the result of a flush of a volume. After an I/O error, a second flush must
// not be believed: the kernel reports the error once, and then takes the lost blocks for written.
func (s *Snapshotter) noteFlush(id thin.ID, err error) error {
	if isIOError(err) || errors.Is(err, errDamaged) {
		s.volumes.noteWritesLost(id)
	}
	return err
}
