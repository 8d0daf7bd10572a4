package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Update changes labels, the only mutable part of a snapshot: all of them without a field path or with
// "labels", or those that paths "labels.NAME" name. Any other path is errdefs.ErrInvalidArgument.
func (s *Snapshotter) Update(ctx context.Context, want snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	rec, err := runBounded(ctx, s,
		func(ctx context.Context) (metadata.Snapshot, error) { return s.update(ctx, want, fieldpaths) })
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", want.Name, Classify(err))
	}
	return info(rec), nil
}

func (s *Snapshotter) update(ctx context.Context, want snapshots.Info, fieldpaths []string) (metadata.Snapshot, error) {
	var rec metadata.Snapshot
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		old, err := tx.Get(want.Name)
		if err != nil {
			return err
		}
		labels, err := applyFieldpaths(old.Labels, want.Labels, fieldpaths)
		if err != nil {
			return err
		}
		labels = storedLabels(labels)
		if err := checkLabels(labels); err != nil {
			return err
		}
		rec, err = tx.SetLabels(want.Name, labels, now())
		return err
	})
	if err == nil {
		s.noteVolume(ctx, thin.ID(rec.VolumeID))
	}
	// gofail: var afterUpdateRecord struct{}
	return rec, err
}

// applyFieldpaths returns the labels old with the named ones replaced by those of want, or want without
// field paths.
func applyFieldpaths(old, want map[string]string, fieldpaths []string) (map[string]string, error) {
	if len(fieldpaths) == 0 {
		return want, nil
	}
	labels := maps.Clone(old)
	if labels == nil {
		labels = make(map[string]string)
	}
	for _, path := range fieldpaths {
		name, one := strings.CutPrefix(path, "labels.")
		switch {
		case one:
			labels[name] = want[name]
		case path == "labels":
			labels = maps.Clone(want)
			if labels == nil {
				labels = make(map[string]string)
			}
		default:
			return nil, fmt.Errorf("field %q cannot be changed: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	return labels, nil
}
