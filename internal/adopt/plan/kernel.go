package plan

import (
	"errors"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// checkPool reads the pool in the kernel and on its devices.
func (g *gatherer) checkPool() {
	subject := fmt.Sprintf("pool %q", g.options.Pool)
	control, err := devmapper.Open()
	if err != nil {
		g.unread = true
		g.fail(subject, err)
		return
	}
	defer control.Close()
	found, err := pool.ExistingSpec{Device: g.options.Pool}.Inspect(g.ctx, control)
	switch {
	case errors.Is(err, devmapper.ErrNotFound):
		g.unread = true
		g.obstruct(subject, "load it as at boot; for a pool of LVM, run `vgchange -ay`, or `lvchange -ay` with its name",
			"it is not active")
		return
	case err != nil:
		g.unread = true
		g.fail(subject, err)
		return
	}
	g.pool = poolInput{
		name: found.Device.Name, uuid: found.Device.UUID, suspended: found.Device.Suspended, blockBytes: found.BlockBytes(),
		table: found.Table, sectors: found.Sectors, status: found.Status,
	}
	g.pool.lvm, _ = found.LVM()
	if g.pool.table.SkipBlockZeroing && g.pool.lvm == "" {
		g.loaders = loaders(g.ctx, "/", g.options.Pool)
	}
	if mode := g.pool.status.Mode; mode == thin.ModeFail || mode == thin.ModeError {
		g.unread = true // poolState adds the obstacle
		return
	}
	if g.unread {
		return
	}
	if err := found.ReadCommitted(g.ctx, g.readVolumes); errors.Is(err, pool.ErrChanged) {
		g.unread = true
		g.obstruct(subject, "stop its users: containerd and its containers", "%v", pool.ErrChanged)
	} else if err != nil {
		g.unread = true
		g.obstruct(subject, "stop all users of the pool, deactivate it, and run thin_check on its metadata",
			"its metadata cannot be read: %v", err)
	}
	if err := g.readMapped(found); err != nil {
		g.unread = true
		g.fail(subject, err)
	}
}

func (g *gatherer) readMapped(found *pool.Inspection) error {
	all, err := found.MappedDevices(g.ctx)
	if err != nil {
		return fmt.Errorf("list the mapped devices: %w", err)
	}
	mounts := mountsOf("/proc")
	for _, d := range all {
		g.mapped = append(g.mapped, mappedDevice{
			name: d.Name, uuid: d.UUID, shows: uint32(d.Shows), openCount: d.OpenCount, mounts: mounts[d.Number()],
		})
	}
	return nil
}
