package snapshotter

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// statusAge is the greatest age of the pool status that decides about a new snapshot.
const statusAge = time.Second

// checkPool refuses a new snapshot in three cases: the pool takes no changes, its time is near the
// maximum, or too little is free and the pool cannot be extended.
func (s *Snapshotter) checkPool(ctx context.Context) error {
	if err := s.ids.time.check(); err != nil {
		s.spares.dropAll()
		return err
	}
	err := s.checkSpace(ctx, statusAge)
	if errdefs.IsResourceExhausted(err) {
		err = s.checkSpace(ctx, 0) // space may have been freed since
	}
	if s.config.MakeRoom != nil && errdefs.IsResourceExhausted(err) {
		s.config.MakeRoom(ctx, s.config.MinFreePercent)
		err = s.checkSpace(ctx, 0)
	}
	if errdefs.IsResourceExhausted(err) {
		s.spares.dropAll()
	}
	return err
}

// Refusal returns the reason, with the remedy, why new snapshots are refused at present, or nil. It only
// reads the pool's status; a Prepare may succeed nevertheless, because it first extends the pool.
func (s *Snapshotter) Refusal(ctx context.Context) error {
	if err := s.ids.time.check(); err != nil {
		return err
	}
	return s.checkSpace(ctx, statusAge)
}

// checkSpace checks a pool status that is at most age old, and the present state of the disk below the
// pool, which other programs can fill at any time.
func (s *Snapshotter) checkSpace(ctx context.Context, age time.Duration) error {
	status, err := s.pool.RecentStatus(ctx, age)
	if err != nil {
		return err
	}
	return cmp.Or(poolError(status), s.checkFree("data", status.Data), s.checkFree("metadata", status.Metadata))
}

// checkFree fails if less than MinFreePercent of the usable space is free. The usable space is the pool's
// size, or less if the disk below the pool has less free space than the pool.
func (s *Snapshotter) checkFree(what string, space pool.Space) error {
	free := min(space.Total-space.Used, space.Available)
	total := space.Used + free
	if free*100 >= total*s.config.MinFreePercent {
		return nil
	}
	where, remedy := "the pool", fmt.Sprintf("make the pool larger with `thinsnap pool extend --%s +SIZE`", what)
	if space.Available < space.Total-space.Used {
		where, remedy = "the disk below the pool", "make room on that disk"
	}
	return fmt.Errorf("%s has %d of %d bytes of %s left, less than the minimum of %d%% (pool.min_free_space): "+
		"remove snapshots, or %s: %w",
		where, free, total, what, s.config.MinFreePercent, remedy, errdefs.ErrResourceExhausted)
}

// poolError returns the error of a pool that has no space or takes no changes, and nil for any other.
func poolError(status pool.Status) error {
	switch status.Mode {
	case thin.ModeOutOfDataSpace:
		return errFull
	case thin.ModeReadOnly:
		full := status.Metadata.Used >= status.Metadata.Total
		switch {
		case full && status.NeedsCheck:
			return errMetadataRanOut
		case full:
			return errMetadataFull
		case status.NeedsCheck:
			return errNeedsCheck
		}
		return errReadOnly
	case thin.ModeFail, thin.ModeError:
		return errFailed
	}
	return nil
}

// stopUsers begins the remedy for a pool that must leave the kernel.
const stopUsers = "stop thinsnap and everything that uses the pool, "

var (
	errFull = fmt.Errorf("the pool has no space left: the kernel holds writes back, and fails them after a time: "+
		"remove snapshots, or make the pool larger with `thinsnap pool extend`, "+
		"and try again: %w", errdefs.ErrResourceExhausted)
	errReadOnly = fmt.Errorf("%w: its content can still be read: see dmesg for the cause (its metadata is full, or the "+
		"disk below it failed), "+
		stopUsers+"run `thinsnap pool check`, which deactivates the pool, and start thinsnap again: %w",
		thin.ErrPoolReadOnly, errdefs.ErrUnavailable)
	errMetadataFull = fmt.Errorf("%w: its metadata has no space left, and its content can only be read: "+
		"make the metadata larger with `thinsnap pool extend --metadata SIZE`, and operations continue: %w",
		thin.ErrPoolReadOnly, errdefs.ErrResourceExhausted)
	errMetadataRanOut = fmt.Errorf("%w: its metadata ran out of space and needs a check, and its content can only be "+
		"read: "+
		stopUsers+"run `thinsnap pool repair --metadata SIZE`, which deactivates the pool "+
		"and makes its metadata larger, and start thinsnap again: %w",
		thin.ErrPoolReadOnly, errdefs.ErrResourceExhausted)
	errNeedsCheck = fmt.Errorf("%w: its metadata needs a check, and its content can only be read: "+
		stopUsers+"run `thinsnap pool repair`, which deactivates the pool "+
		"and checks and repairs its metadata, and start thinsnap again: %w",
		thin.ErrPoolReadOnly, errdefs.ErrUnavailable)
	errFailed = fmt.Errorf("%w: its content can neither be read nor written: see dmesg, fix the disk below it, "+
		stopUsers+"run `thinsnap pool check`, which deactivates the pool, and start thinsnap again: %w",
		thin.ErrPoolFailed, errdefs.ErrUnavailable)
)
