package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata"
)

// View creates a read-only snapshot. All Views of a parent share the parent's volume, activated read-only.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := runInKernel(ctx, s,
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
	if want.fork != "" {
		return nil, fmt.Errorf("label %s: a View cannot be a fork: %w", LabelFrom, errdefs.ErrInvalidArgument)
	}
	from, err := s.findOrigin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if parent == "" {
		if from, err = s.baseOrigin(ctx, s.config.BaseBytes); err != nil {
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
	if ctx.Err() != nil {
		err = context.Cause(ctx) // the caller has received an error, and may try again
		err = errors.Join(err, s.removeView(context.WithoutCancel(ctx), rec))
		return nil, err
	}
	return s.mounts(rec, vol.Path), nil
}

// removeView removes a View whose caller has received an error, unless the key now belongs to another
// snapshot.
func (s *Snapshotter) removeView(ctx context.Context, view metadata.Snapshot) error {
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		rec, err := tx.Get(view.Key)
		if err != nil || rec.Kind != snapshots.KindView || !rec.Created.Equal(view.Created) {
			return err
		}
		_, err = tx.Remove(view.Key, now())
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the record of View %q, whose caller gave up: %w", view.Key, err)
	}
	return nil
}
