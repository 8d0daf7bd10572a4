package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// statusAge is how old the figures may be by which a new snapshot is refused.
const statusAge = time.Second

// checkPool refuses a new snapshot when the pool keeps no changes, or is too full
// for the snapshots that there are.
func (s *Snapshotter) checkPool(ctx context.Context) error {
	status, err := s.pool.RecentStatus(ctx, statusAge)
	if err != nil {
		return err
	}
	if err := unwell(status); err != nil && !errors.Is(err, errFull) {
		return err
	}
	err = cmp.Or(s.enough("data", status.Data), s.enough("metadata", status.Metadata), unwell(status))
	if err != nil {
		s.spares.dropAll()
	}
	return err
}

// enough refuses when less than MinFreePercent is free of what the pool can have:
// its size, or what is left on the disk that its files lie on.
func (s *Snapshotter) enough(what string, space pool.Space) error {
	free := min(space.Total-space.Used, space.Available)
	total := space.Used + free
	if free*100 >= total*s.config.MinFreePercent {
		return nil
	}
	where, remedy := "the pool", "make the pool larger with `thinsnap pool extend`"
	if space.Available < space.Total-space.Used {
		where, remedy = "the disk below the pool", "make room on that disk"
	}
	return fmt.Errorf("%s has %d of %d bytes of %s left, and %d%% are to be kept free: "+
		"remove snapshots, or %s: %w",
		where, free, total, what, s.config.MinFreePercent, remedy, errdefs.ErrResourceExhausted)
}

// unwell returns why a pool takes no changes, nil if it does.
func unwell(status pool.Status) error {
	switch status.Mode {
	case thin.ModeOutOfDataSpace:
		return errFull
	case thin.ModeReadOnly:
		if status.Metadata.Used >= status.Metadata.Total {
			return errMetadataFull
		}
		if status.NeedsCheck {
			return errNeedsCheck
		}
		return errReadOnly
	case thin.ModeFail, thin.ModeError:
		return errFailed
	}
	return nil
}

var (
	errFull = fmt.Errorf("the pool has no space left, and what is written to it waits in the kernel, and fails after a time: "+
		"remove snapshots, or make the pool larger with `thinsnap pool extend`, and try again: %w", errdefs.ErrResourceExhausted)
	errStuck = fmt.Errorf("the kernel did not finish it within %v: is a disk below the pool or the root directory hanging (see dmesg)? "+
		"Try again when it answers: %w", kernelWait, errdefs.ErrUnavailable)
)

// What to do about a pool that keeps no changes, or no I/O at all.
const (
	remedyReadOnly = "what is in the pool can still be read: see dmesg for the cause (its metadata is full, or the disk below it failed), " +
		"stop what uses the pool and thinsnap, run `thinsnap pool check`, which takes the pool out of the kernel, and start thinsnap again"
	remedyMetadataFull = "its metadata has no space left, and what is in it can only be read: " +
		"stop what uses the pool and thinsnap, have `thinsnap pool repair --metadata SIZE` take the pool out of the kernel " +
		"and make its metadata larger, and start thinsnap again"
	remedyCheck = "the pool is marked as in need of a check, and can only be read: " +
		"stop what uses the pool and thinsnap, have `thinsnap pool repair` take the pool out of the kernel " +
		"and check and mend its metadata, and start thinsnap again"
	remedyFailed = "nothing in it can be read or written: see dmesg, mend what is below it, " +
		"stop what uses the pool and thinsnap, run `thinsnap pool check`, which takes the pool out of the kernel, and start thinsnap again"
	remedyDisk = "see dmesg, mend the disk below it, and try again"
)

var (
	errReadOnly     = fmt.Errorf("%w: %s: %w", thin.ErrPoolReadOnly, remedyReadOnly, errdefs.ErrUnavailable)
	errMetadataFull = fmt.Errorf("%w: %s: %w", thin.ErrPoolReadOnly, remedyMetadataFull, errdefs.ErrResourceExhausted)
	errNeedsCheck   = fmt.Errorf("%w: %s: %w", thin.ErrPoolReadOnly, remedyCheck, errdefs.ErrUnavailable)
	errFailed       = fmt.Errorf("%w: %s: %w", thin.ErrPoolFailed, remedyFailed, errdefs.ErrUnavailable)
)
