package snapshotter

import (
	"cmp"
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Usage returns the space of a snapshot: the bytes that its volume maps beyond its parent's.
// Blocks of the parent that it has written again are not counted. A View takes none.
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
	total := rec.Usage
	if rec.Kind == snapshots.KindActive {
		total, err = s.volumes.measure(ctx, id, rec.Size, func(path string) int64 { return s.inodes(ctx, rec, path) })
		if err != nil {
			// It may have been removed in the meantime, and its volume with it.
			gone := s.store.View(ctx, func(tx *metadata.Tx) error { return requireVolume(tx, key, id) })
			return snapshots.Usage{}, cmp.Or(gone, err)
		}
	}
	return snapshots.Usage{
		Size:   max(total.Bytes-parent.Usage.Bytes, 0),
		Inodes: max(total.Inodes-parent.Usage.Inodes, 0),
	}, nil
}

// inodes returns the number of inodes in use of a snapshot, 0 if that cannot be read: a virtual
// machine can write what it wants.
func (s *Snapshotter) inodes(ctx context.Context, rec metadata.Snapshot, path string) int64 {
	n, err := s.fs.Inodes(path, rec.Filesystem)
	if err != nil {
		log.G(ctx).WithField("device", path).WithError(err).Debug("cannot count the inodes")
	}
	return int64(n)
}
