package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/metadata"
)

// View creates a read-only snapshot. It has no volume: it is the parent's, activated read-only,
// which all Views of a parent share.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := runBounded(ctx, s,
		func(ctx context.Context) ([]mount.Mount, error) { return s.view(ctx, key, parent, opts) })
	if err != nil {
		return nil, fmt.Errorf("view snapshot %q: %w", key, s.explain(err))
	}
	return mounts, nil
}

func (s *Snapshotter) view(ctx context.Context, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	want, err := parseOptions(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	from, err := s.findOrigin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if parent == "" {
		if from, err = s.baseOrigin(ctx, 0); err != nil {
			return nil, err
		}
	}
	s.noteVolume(ctx, from.volume)
	unpin := s.volumes.pin(from.volume)
	defer func() {
		unpin()
		if err != nil {
			s.reaper.add(from.volume, false)
		}
	}()
	// gofail: var beforeActivateView struct{}
	vol, err := s.volumes.ensureActive(ctx, from.volume, from.bytes, true)
	if err != nil {
		return nil, s.explainMissingParent(ctx, parent, from, err)
	}
	// gofail: var beforeViewRecord struct{}
	rec := metadata.Snapshot{
		Key:        key,
		Parent:     parent,
		Kind:       snapshots.KindView,
		Labels:     want.labels,
		Created:    now(),
		VolumeID:   uint32(from.volume),
		Size:       from.bytes,
		Filesystem: from.filesystem,
	}
	rec.Updated = rec.Created
	if err = s.createRecord(ctx, rec, from); err != nil {
		return nil, err
	}
	// gofail: var afterViewRecord struct{}
	return s.mounts(rec, vol.Path), nil
}
