package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Stat describes a snapshot of any kind.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	rec, err := s.get(ctx, key)
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("stat snapshot %q: %w", key, Classify(err))
	}
	s.noteVolume(ctx, thin.ID(rec.VolumeID))
	return info(rec), nil
}

func info(rec metadata.Snapshot) snapshots.Info {
	return snapshots.Info{
		Kind:    rec.Kind,
		Name:    rec.Key,
		Parent:  rec.Parent,
		Labels:  rec.Labels,
		Created: rec.Created,
		Updated: rec.Updated,
	}
}
