package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// errStillMounted reports an ext4 that is mounted without its journal: until the unmount no copy of it is
// whole, not even while it is frozen.
var errStillMounted = fmt.Errorf("no copy of it would be whole: %w", errdefs.ErrUnavailable)

// errUnmounting reports a file system that is being unmounted: newer kernels do not freeze it.
var errUnmounting = fmt.Errorf("its file system is being unmounted: %w", errdefs.ErrUnavailable)

// errOpenUnclean reports an unpack that is open, was not frozen, and may lack the last files. Its file
// system is being mounted or unmounted, or has shut down; the close shows which.
var errOpenUnclean = fmt.Errorf("its log is not clean: %w", errdefs.ErrUnavailable)

// seal prepares a volume for the commit: its device refuses writes, its file system is whole, and its
// content is on stable storage. With frozenCopy the volume is a frozen copy of a volume in use.
//
// If the returned volume is in use, it was opened meanwhile, and is not sealed. sb is the superblock of its
// file system, or zero without one.
func (s *Snapshotter) seal(
	ctx context.Context, vol pool.Volume, rec metadata.Snapshot, frozenCopy bool,
) (sealed pool.Volume, sb filesystem.Superblock, err error) {
	sealed, sb, err = s.makeWhole(ctx, vol, rec, frozenCopy)
	if err != nil {
		// The next mount would replay the log, and hide that an unpack lacks files. A guest can repair the
		// disk of a virtual machine, so that volume is not marked.
		if isUnpack(rec) && errors.Is(err, ErrDamaged) {
			s.markWritesLost(ctx, vol.ID)
		}
		return vol, sb, s.noteFlush(ctx, vol.ID, err)
	}
	if sealed.OpenCount > 0 {
		return sealed, sb, s.unseal(vol.ID)
	}
	// gofail: var beforeFlush struct{}
	if err := s.noteFlush(ctx, vol.ID, s.pool.Flush(ctx, vol.ID)); err != nil {
		return vol, sb, err
	}
	// gofail: var afterFlush struct{}
	if frozenCopy {
		return vol, sb, nil
	}
	if sealed, err = s.pool.Lookup(ctx, vol.ID); err != nil {
		return vol, sb, err
	}
	if sealed.OpenCount > 0 {
		return sealed, sb, s.unseal(vol.ID)
	}
	return sealed, sb, nil
}

// requireCleanCopy fails for the copy of an unpack that was not frozen, unless it was unmounted cleanly.
func (s *Snapshotter) requireCleanCopy(own, copied pool.Volume, rec metadata.Snapshot) error {
	if err := s.pool.SetReadOnly(copied.ID, true); err != nil {
		return err
	}
	sb, err := s.identify(copied, rec)
	if err != nil {
		return err
	}
	needed := sb.Type == filesystem.XFS && s.volumes.hasCreatedLSN(own.ID, sb.LSN)
	if !needed {
		if _, needed, err = s.needsRecovery(copied, rec, true); err != nil {
			return err
		}
	}
	if needed {
		return fmt.Errorf("%s is open, but not mounted: close it (fuser -v %s), and try again: %w", own.Path, own.Path,
			errOpenUnclean)
	}
	return nil
}

func (s *Snapshotter) unseal(id thin.ID) error {
	if err := s.pool.SetReadOnly(id, false); err != nil {
		return fmt.Errorf("make volume %d writable again: %w", id, err)
	}
	return nil
}

// refuseWrites makes a device refuse writes. An OpenCount of 0 in the returned volume means that its content
// is final until unseal, because a later open cannot write to it. The OpenCount of a frozen copy, which no
// client knows, is not read again.
func (s *Snapshotter) refuseWrites(ctx context.Context, vol pool.Volume, frozenCopy bool) (pool.Volume, error) {
	err := s.pool.SetReadOnly(vol.ID, true)
	if errors.Is(err, devmapper.ErrBusy) && !frozenCopy {
		vol.OpenCount = max(vol.OpenCount, 1)
		return vol, nil
	}
	if err != nil || frozenCopy {
		return vol, err
	}
	sealed, err := s.pool.Lookup(ctx, vol.ID)
	if err != nil {
		return vol, err
	}
	return sealed, nil
}

// makeWhole fails unless a volume's file system is whole: the kernel found no error in it, and it can be
// mounted from a read-only device. It replays the journal of an ext4 or the log of an xfs if necessary, and
// repairs nothing else. The device refuses writes afterwards.
//
// If the returned volume is in use, nothing is known about its file system.
func (s *Snapshotter) makeWhole(
	ctx context.Context, vol pool.Volume, rec metadata.Snapshot, frozenCopy bool,
) (sealed pool.Volume, sb filesystem.Superblock, err error) {
	// A frozen xfs always needs recovery.
	needed := frozenCopy && rec.Filesystem == filesystem.XFS
	for recovered := false; ; {
		if needed {
			if err := s.replay(vol, rec, frozenCopy); err != nil {
				return vol, sb, err
			}
			recovered = true
			// gofail: var afterRecover struct{}
		}
		// Refuse writes before the read, so that no client changes the file system after it.
		if sealed, err = s.refuseWrites(ctx, vol, frozenCopy); err != nil || sealed.OpenCount > 0 {
			return sealed, sb, err
		}
		sb, needed, err = s.needsRecovery(vol, rec, frozenCopy)
		switch {
		case err != nil || !needed:
			return sealed, sb, err
		case recovered:
			return sealed, sb, fmt.Errorf("its log cannot be replayed: %w", ErrDamaged)
		}
	}
}

func (s *Snapshotter) replay(vol pool.Volume, rec metadata.Snapshot, frozenCopy bool) error {
	if isUnpack(rec) && !frozenCopy {
		return fmt.Errorf("it was not unmounted cleanly, and may lack the last files: %w", ErrDamaged)
	}
	if err := s.unseal(vol.ID); err != nil {
		return err
	}
	err := s.fs.Recover(vol.Path, rec.Filesystem)
	if err == nil {
		return nil
	}
	if sb, identifyErr := s.fs.Identify(vol.Path); identifyErr == nil && sb.Damage != "" {
		err = fmt.Errorf("%s: %w: %w", sb.Damage, err, ErrDamaged)
	}
	return explainMount(err)
}

// needsRecovery reports whether a file system has a journal or log that must be replayed. The superblock
// sb of an ext4 shows that; for an xfs, a mount of the device does. The device must refuse writes. A
// damaged file system is an error.
func (s *Snapshotter) needsRecovery(
	vol pool.Volume, rec metadata.Snapshot, frozenCopy bool,
) (sb filesystem.Superblock, needed bool, err error) {
	sb, err = s.identify(vol, rec)
	if err != nil || sb.Type != rec.Filesystem {
		return sb, false, err
	}
	if err := sb.Mountable(); err != nil {
		return sb, false, explainMount(err)
	}
	if sb.Unclean && frozenCopy {
		return sb, false, errStillMounted
	}
	if sb.Unclean {
		return sb, false, fmt.Errorf("it was mounted without a journal, and not unmounted cleanly: %w", ErrDamaged)
	}
	if sb.Type != filesystem.XFS {
		return sb, sb.NeedsRecovery, nil
	}
	// An xfs that could not write its log between mount and unmount looks as before the mount.
	if isUnpack(rec) && s.volumes.hasCreatedLSN(vol.ID, sb.LSN) {
		return sb, false, fmt.Errorf("it was never unmounted cleanly: %w", ErrDamaged)
	}
	err = s.fs.Verify(vol.Path, filesystem.XFS)
	if errors.Is(err, filesystem.ErrNeedsRecovery) {
		return sb, true, nil
	}
	return sb, false, explainMount(err)
}

// identify returns the superblock of a volume's file system, and fails if that is damaged. Without a file
// system it fails for an unpack; otherwise the type is "", because a virtual machine may have overwritten
// it.
func (s *Snapshotter) identify(vol pool.Volume, rec metadata.Snapshot) (filesystem.Superblock, error) {
	// Identify reads with O_DIRECT, which first writes back cached blocks, and returns the error of that.
	sb, err := s.fs.Identify(vol.Path)
	switch {
	case errors.Is(err, filesystem.ErrNotRecognised) && isUnpack(rec):
		return sb, fmt.Errorf("%w: %w", err, ErrDamaged)
	case errors.Is(err, filesystem.ErrNotRecognised):
		return filesystem.Superblock{}, nil
	case err != nil:
		return sb, err
	case sb.Damage != "":
		return sb, fmt.Errorf("%s: %w", sb.Damage, ErrDamaged)
	}
	return sb, nil
}

// explainMount classifies a mount error that is about the file system.
func explainMount(err error) error {
	switch {
	case isOneOf(err, unix.EUCLEAN, unix.EBADMSG) && !errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w: %w", err, ErrDamaged)
	case errors.Is(err, filesystem.ErrUnsafe):
		return fmt.Errorf("%w: change the file system where it is used, or remove the snapshot: %w", err,
			errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: this kernel cannot mount it (see dmesg): %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// noteFlush returns err, the result of a flush of a volume. It marks the volume after an I/O error, because
// a second flush proves nothing: the kernel reports the error once, and then treats the lost blocks as
// written.
func (s *Snapshotter) noteFlush(ctx context.Context, id thin.ID, err error) error {
	if isIOError(err) {
		s.markWritesLost(ctx, id)
	}
	return err
}

// markWritesLost is noteWritesLost, stored at once if possible, and otherwise by watch.
func (s *Snapshotter) markWritesLost(ctx context.Context, id thin.ID) {
	s.volumes.noteWritesLost(id)
	if err := s.storeWritesLost(context.WithoutCancel(ctx)); err != nil {
		log.G(ctx).WithField("device", s.pool.VolumePath(id)).WithError(err).Warn("cannot store that this volume may have " +
			"lost writes: until a later try succeeds, a restart forgets it")
	}
}
