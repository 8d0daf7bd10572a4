package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// trimPiece is how much of a file system, in bytes, is trimmed under one hold of its
// volume's lock: a block group of an ext4, which Commit and Mounts wait for no longer
// than for anything else.
const trimPiece = 128 << 20

// Trimmed is what Trim has done.
type Trimmed struct {
	// Device is the snapshot's volume.
	Device thin.ID
	// Bytes is what its file system does not use, and had discarded. The kernel
	// counts what the volume had nothing for as well.
	Bytes uint64
	// Unmapped is by how much less the volume maps than before. What it shared with
	// others is not free with that.
	Unmapped uint64
	// Stopped says why the trimming has ended before the file system did, nil if it
	// did not.
	Stopped error
}

// Trim gives what was deleted from an active snapshot that is mounted back to the
// pool, and to what the pool lies on. It is errdefs.ErrFailedPrecondition for any
// other: what is committed never changes. A snapshot that is committed, removed or
// unmounted meanwhile is in nobody's way; what was done until then is returned.
func (s *Snapshotter) Trim(ctx context.Context, key string) (Trimmed, error) {
	var done Trimmed
	for offset, end := uint64(0), uint64(1); offset < end; offset += trimPiece {
		piece, err := bounded(ctx, s, func(ctx context.Context) (trimmedPiece, error) {
			return s.trimPiece(ctx, key, done.Device, offset)
		})
		switch {
		case offset > 0 && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)):
			done.Stopped = err
			return done, nil
		case err != nil:
			return done, fmt.Errorf("trim snapshot %q: %w", key, s.explained(err))
		}
		end, done.Device = piece.end, piece.device
		done.Bytes += piece.bytes
		done.Unmapped += piece.unmapped
	}
	return done, nil
}

// trimmedPiece is what trimPiece has done.
type trimmedPiece struct {
	device          thin.ID
	bytes, unmapped uint64
	// end of the volume, or, if that is less, of its file system.
	end uint64
}

// trimPiece trims what lies at offset, if the snapshot still has the volume that the
// pieces before were of; that is 0 for the first of them. It holds the volume's lock as
// long as it has a mount of its own, which could change what is committed meanwhile, and
// which could not go from a volume that is suspended: a daemon that is killed then would
// not end, and keep its store from the next.
func (s *Snapshotter) trimPiece(ctx context.Context, key string, of thin.ID, offset uint64) (trimmedPiece, error) {
	var rec metadata.Snapshot
	unlock, err := s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		if rec, err = s.get(ctx, key); err == nil {
			err = s.trimmable(rec, of)
		}
		return rec, err
	})
	if err != nil {
		return trimmedPiece{}, err
	}
	defer unlock()
	id := thin.ID(rec.Device)
	s.working(ctx, id)
	piece := trimmedPiece{device: id, end: rec.Size}
	vol, err := s.pool.Lookup(ctx, id)
	switch {
	case errors.Is(err, devmapper.ErrNotFound), err == nil && !s.fs.Mounted(vol.Path, rec.Filesystem):
		return piece, fmt.Errorf("it is not mounted: %w", errdefs.ErrFailedPrecondition)
	case err != nil:
		return piece, err
	case vol.Suspended:
		return piece, fmt.Errorf("its device is suspended: %w", errdefs.ErrFailedPrecondition)
	}
	before, err := s.pool.Mapped(ctx, id)
	if err != nil {
		return piece, err
	}
	piece.bytes, err = s.fs.Trim(vol.Path, rec.Filesystem, offset, min(trimPiece, rec.Size-offset))
	switch {
	case errors.Is(err, unix.EINVAL) && offset > 0:
		piece.end = offset
	case errors.Is(err, unix.EBUSY):
		return piece, fmt.Errorf("it is mounted read-only, or frozen: %w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EROFS):
		return piece, fmt.Errorf("it is mounted without its journal: %w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EOPNOTSUPP):
		return piece, fmt.Errorf("the pool takes no discards: %w: %w", err, errdefs.ErrNotImplemented)
	case err != nil:
		return piece, err
	}
	after, err := s.pool.Mapped(ctx, id)
	if err == nil && after < before {
		piece.unmapped = before - after
	}
	return piece, err
}

// trimmable refuses a snapshot whose volume is not to be touched.
func (s *Snapshotter) trimmable(rec metadata.Snapshot, of thin.ID) error {
	switch {
	case of != 0 && of != thin.ID(rec.Device):
		return fmt.Errorf("it was removed, and made again: %w", errdefs.ErrNotFound)
	case rec.Kind != snapshots.KindActive:
		return fmt.Errorf("it is not active, and never changes: %w", errdefs.ErrFailedPrecondition)
	case s.withoutJournal(rec):
		return fmt.Errorf("a layer is being unpacked into it: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
