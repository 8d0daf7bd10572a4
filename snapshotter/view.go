package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/metadata"
)

// View makes a read-only snapshot: the parent's own volume, activated read-only,
// which any number of Views share.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := bounded(ctx, s, func(ctx context.Context) ([]mount.Mount, error) { return s.view(ctx, key, parent, opts) })
	if err != nil {
		return nil, fmt.Errorf("view snapshot %q: %w", key, s.explained(err))
	}
	return mounts, nil
}

func (s *Snapshotter) view(ctx context.Context, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	want, err := parseOptions(opts)
	if err != nil {
		return nil, err
	}
	from, err := s.origin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if parent == "" {
		if from, err = s.emptyOrigin(ctx, 0); err != nil {
			return nil, err
		}
	}
	s.working(ctx, from.device)
	unpin := s.volumes.pin(from.device)
	defer func() {
		unpin()
		if err != nil {
			s.reaper.add(from.device, false)
		}
	}()
	// gofail: var beforeActivateView struct{}
	vol, err := s.volumes.use(ctx, from.device, from.bytes, true)
	if err != nil {
		return nil, s.orParentGone(ctx, parent, from, err)
	}
	// gofail: var beforeViewRecord struct{}
	rec := metadata.Snapshot{
		Key:        key,
		Parent:     parent,
		Kind:       snapshots.KindView,
		Labels:     want.labels,
		Created:    now(),
		Device:     uint32(from.device),
		Size:       from.bytes,
		Filesystem: from.filesystem,
	}
	rec.Updated = rec.Created
	if err = s.create(ctx, rec, from); err != nil {
		return nil, err
	}
	// gofail: var afterViewRecord struct{}
	return s.mounts(rec, vol.Path), nil
}
