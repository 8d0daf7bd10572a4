package daemon

import (
	"context"
	"fmt"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Trim implements admin.Backend.
func (d *Daemon) Trim(ctx context.Context, key string) (admin.Trimming, error) {
	// Trimming several snapshots at once would only load the disk.
	select {
	case d.trimming <- struct{}{}:
		defer func() { <-d.trimming }()
	case <-ctx.Done():
		return admin.Trimming{}, ctx.Err()
	}
	stored, err := metadata.ReadKey(key)
	if err != nil {
		return admin.Trimming{}, err
	}
	done, err := d.snapshotter.Trim(ctx, stored)
	if err != nil {
		return admin.Trimming{}, err
	}
	trimming := admin.Trimming{Key: key, DeviceID: uint32(done.VolumeID), Trimmed: done.Bytes, Unmapped: done.Unmapped}
	if done.Stopped != nil {
		trimming.Stopped = done.Stopped.Error()
	}
	if err := d.pool.Commit(ctx); err != nil {
		return admin.Trimming{}, fmt.Errorf("trim snapshot %q: %w", key, snapshotter.Classify(err))
	}
	return trimming, nil
}
