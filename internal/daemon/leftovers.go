package daemon

import (
	"context"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
)

// Leftovers implements admin.Backend.
func (d *Daemon) Leftovers(ctx context.Context) ([]admin.Leftover, error) {
	kept, err := d.snapshotter.Leftovers(ctx)
	var all []admin.Leftover
	for _, k := range kept {
		all = append(all, admin.Leftover{DeviceID: k.VolumeID, Mapped: k.Mapped, Size: k.Size, Found: k.Found})
	}
	return all, err
}

// RemoveLeftover implements admin.Backend.
func (d *Daemon) RemoveLeftover(ctx context.Context, id uint32) ([]admin.Leftover, error) {
	if err := d.snapshotter.RemoveLeftover(ctx, thin.ID(id)); err != nil {
		return nil, err
	}
	return d.Leftovers(ctx)
}
