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

// minTrimPiece is the smallest piece of a file system, in bytes, that is trimmed under one hold of its
// volume's lock: a block group of an ext4. Commit and Mounts wait for one piece at most.
const minTrimPiece = 128 << 20

// Trimmed is the result of Trim.
type Trimmed struct {
	// VolumeID is the snapshot's volume.
	VolumeID thin.ID
	// Bytes is the number of discarded bytes of free space. The kernel also counts unmapped space.
	Bytes uint64
	// Unmapped is the number of bytes by which the volume's mapped bytes decreased. Blocks that other
	// volumes share do not become free.
	Unmapped uint64
	// Stopped is the reason why Trim ended before the end of the file system, or nil.
	Stopped error
}

// Trim returns the free space of the file system on a mounted active snapshot to the pool, and to the disk
// or files below it. Any other snapshot is errdefs.ErrFailedPrecondition. Commit, Remove and an unmount do
// not wait for the whole Trim, which then stops and returns its progress.
func (s *Snapshotter) Trim(ctx context.Context, key string) (Trimmed, error) {
	var done Trimmed
	status, err := s.pool.Status(ctx)
	if err != nil {
		return done, fmt.Errorf("trim snapshot %q: %w", key, Classify(err))
	}
	// The pool ignores a discard of a part of a block.
	bytes := (minTrimPiece + status.BlockBytes - 1) / status.BlockBytes * status.BlockBytes
	for offset, end := uint64(0), uint64(1); offset < end; offset += bytes {
		piece, err := runInKernel(ctx, s, func(ctx context.Context) (trimmedPiece, error) {
			return s.trimPiece(ctx, key, done.VolumeID, offset, bytes)
		})
		switch {
		case offset > 0 && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)):
			done.Stopped = err
			return done, nil
		case err != nil:
			return done, fmt.Errorf("trim snapshot %q: %w", key, s.explain(err))
		}
		end, done.VolumeID = piece.end, piece.volume
		done.Bytes += piece.bytes
		done.Unmapped += piece.unmapped
	}
	return done, nil
}

type trimmedPiece struct {
	volume          thin.ID
	bytes, unmapped uint64
	// end is the end of the volume, or of its file system if that is smaller.
	end uint64
}

// trimPiece trims a piece at offset, if the snapshot still has the given volume, or any if that is 0. It
// holds the volume's lock while it has its own mount. Otherwise the mount could change a volume during a
// Commit, and a daemon with a mount of a suspended volume could not end.
func (s *Snapshotter) trimPiece(
	ctx context.Context, key string, volume thin.ID, offset, bytes uint64,
) (trimmedPiece, error) {
	var rec metadata.Snapshot
	unlock, err := s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		if rec, err = s.get(ctx, key); err == nil {
			err = s.requireTrimmable(rec, volume)
		}
		return rec, err
	})
	if err != nil {
		return trimmedPiece{}, err
	}
	defer unlock()
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	piece := trimmedPiece{volume: id, end: rec.Size}
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
	piece.bytes, err = s.fs.Trim(vol.Path, rec.Filesystem, offset, min(bytes, rec.Size-offset))
	switch {
	case errors.Is(err, unix.EINVAL) && offset > 0:
		piece.end = offset
	case errors.Is(err, unix.EBUSY):
		return piece, fmt.Errorf("it is mounted read-only, or frozen: %w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EROFS):
		return piece, fmt.Errorf("it is mounted without its journal: %w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EOPNOTSUPP):
		return piece, fmt.Errorf("the pool does not support discards: %w: %w", err, errdefs.ErrNotImplemented)
	case err != nil:
		return piece, err
	}
	after, err := s.pool.Mapped(ctx, id)
	if err == nil && after < before {
		piece.unmapped = before - after
	}
	return piece, err
}

// requireTrimmable refuses a snapshot whose volume must not change, or is not the given one, unless that
// is 0.
func (s *Snapshotter) requireTrimmable(rec metadata.Snapshot, volume thin.ID) error {
	switch {
	case volume != 0 && volume != thin.ID(rec.VolumeID):
		return fmt.Errorf("it was removed and created again: %w", errdefs.ErrNotFound)
	case rec.Kind != snapshots.KindActive:
		return fmt.Errorf("it is not active: %w", errdefs.ErrFailedPrecondition)
	case s.withoutJournal(rec):
		return fmt.Errorf("a layer is being unpacked into it: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
