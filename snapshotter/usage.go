package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// usageAge is the greatest age of an active snapshot's usage, apart from changes that the pool has not
// committed. The kubelet and containerd's CRI plugin ask for all snapshots, one after another, every ten
// seconds.
const usageAge = 100 * time.Millisecond

// Usage returns the space of a snapshot. Size is the number of bytes that its volume maps and its parent's
// volume does not map to the same blocks; overwritten blocks of the parent count. Inodes is the number that
// its file system has beyond its parent's. A View uses nothing.
//
// The figures are those of the pool's last commit, at most a second old while the volume is written to.
// Those of a committed snapshot never change.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	usage, err := runInKernel(ctx, s, func(ctx context.Context) (snapshots.Usage, error) { return s.usage(ctx, key) })
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, s.explain(err))
	}
	return usage, nil
}

func (s *Snapshotter) usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var rec, parent metadata.Snapshot
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		if rec, err = tx.Get(key); err != nil || rec.Parent == "" {
			return err
		}
		parent, err = tx.Get(rec.Parent)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	if rec.Kind == snapshots.KindView {
		return snapshots.Usage{}, nil
	}
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	inodes := rec.Usage.Inodes
	if rec.Kind == snapshots.KindActive {
		inodes, err = s.volumes.countInodes(ctx, id, rec.Size, func(path string) int64 { return s.inodes(ctx, rec, path) })
	}
	var bytes pool.Usage
	if err == nil {
		bytes, err = s.UsageOf(ctx, rec, parent.VolumeID)
	}
	if err != nil {
		// The snapshot, and its volume with it, may have been removed meanwhile.
		gone := s.store.View(ctx, func(tx *metadata.Tx) error { return requireVolume(tx, key, id) })
		return snapshots.Usage{}, cmp.Or(gone, err)
	}
	return snapshots.Usage{Size: int64(bytes.Own), Inodes: max(inodes-parent.Usage.Inodes, 0)}, nil
}

// UsageOf returns the bytes that an active or committed snapshot maps, and those of them that its parent's
// volume (0 for none) does not map to the same blocks.
func (s *Snapshotter) UsageOf(ctx context.Context, rec metadata.Snapshot, parent uint32) (pool.Usage, error) {
	id, origin := thin.ID(rec.VolumeID), thin.ID(parent)
	if rec.Kind == snapshots.KindActive {
		return s.usageFrom(ctx, id, origin, usageAge)
	}
	if rec.Usage.Exact {
		return pool.Usage{Mapped: uint64(rec.Usage.Bytes), Own: uint64(rec.Usage.Own)}, nil
	}
	if usage, known := s.volumes.usageOf(id); known {
		return usage, nil
	}
	usage, err := s.usageFrom(ctx, id, origin, 0)
	if err == nil {
		s.volumes.noteUsage(id, usage)
	}
	return usage, err
}

// usageFrom calls Pool.Usage, but takes a lost parent volume as mapping nothing.
func (s *Snapshotter) usageFrom(ctx context.Context, id, origin thin.ID, age time.Duration) (pool.Usage, error) {
	usage, err := s.pool.Usage(ctx, id, origin, age)
	if origin != 0 && errors.Is(err, thin.ErrNoDevice) {
		return s.pool.Usage(ctx, id, 0, age)
	}
	return usage, err
}

// ExclusiveOf returns the bytes that the pool gets back when an active or committed snapshot is removed:
// only its own volume and the spares made of it map them. It returns pool.ErrUnknown if the pool cannot
// tell at present.
func (s *Snapshotter) ExclusiveOf(ctx context.Context, rec metadata.Snapshot) (uint64, error) {
	id := thin.ID(rec.VolumeID)
	return s.pool.Exclusive(ctx, id, s.spares.of(id)...)
}

// inodes returns the number of used inodes of a snapshot. It is 0 if that cannot be read, because a virtual
// machine can write anything.
func (s *Snapshotter) inodes(ctx context.Context, rec metadata.Snapshot, path string) int64 {
	n, err := s.fs.Inodes(path, rec.Filesystem)
	if err != nil {
		log.G(ctx).WithField("device", path).WithError(err).Debug("cannot count the inodes")
	}
	return int64(n)
}
