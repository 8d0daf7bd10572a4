package plan

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/inactive"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
)

// lookAtPool reads the pool, in the kernel and on its devices.
func (g *gatherer) lookAtPool() {
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
		g.obstruct(subject, "run what loads it at boot; if it is LVM's, run `vgchange -ay`, or `lvchange -ay` with its name",
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
		g.unread = true // it is an obstacle
		return
	}
	if g.unread {
		return
	}
	if err := found.ReadCommitted(g.ctx, g.readVolumes); errors.Is(err, pool.ErrChanged) {
		g.unread = true
		g.obstruct(subject, "stop what uses it: containerd and its containers", "%v", pool.ErrChanged)
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

// readMapped reads the mapped devices of the pool's volumes.
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

// readVolumes reads what the pool has committed.
func (g *gatherer) readVolumes(m *thinmeta.Metadata, data io.ReaderAt) error {
	r := &volumeReader{gatherer: g, metadata: m, data: data, begun: make(map[string]bool)}
	if err := r.list(); err != nil {
		return err
	}
	for _, d := range g.databases.Devices {
		if err := r.read(d); err != nil {
			return err
		}
	}
	return r.readFilesystems()
}

// A volumeReader reads the volumes of the built-in's devices.
type volumeReader struct {
	*gatherer
	metadata *thinmeta.Metadata
	data     io.ReaderAt

	devices map[string]builtin.Device
	found   map[uint32]thinmeta.Device
	whole   map[uint32]bool
	begun   map[string]bool // the devices whose volumes are read, or being read
}

// list reads which volumes there are.
func (r *volumeReader) list() (err error) {
	r.volumes = make(map[string]volume, len(r.databases.Devices))
	r.devices, r.found = make(map[string]builtin.Device), make(map[uint32]thinmeta.Device)
	named := make(map[uint32]bool)
	for _, d := range r.databases.Devices {
		r.devices[d.Name] = d
		named[d.ID] = true
	}
	r.foreign = 0
	for d, err := range r.metadata.Devices(r.ctx) {
		if err != nil {
			return err
		}
		r.found[d.ID] = d
		r.highest = max(r.highest, d.ID)
		if !named[d.ID] {
			r.foreign++
		}
	}
	r.whole, err = r.metadata.Whole(r.ctx, 0, math.MaxUint32)
	return err
}

// read reads the volume of a device, and before that those that it was copied from.
func (r *volumeReader) read(d builtin.Device) error {
	if r.begun[d.Name] {
		return nil
	}
	r.begun[d.Name] = true
	of, exists := r.found[d.ID]
	v := volume{exists: exists, whole: r.whole[d.ID], mapped: of.MappedBlocks, created: of.CreationTime}
	parent, recorded := r.devices[d.Parent]
	if recorded {
		if err := r.read(parent); err != nil {
			return err
		}
	}
	if !v.whole {
		r.volumes[d.Name] = v
		return nil
	}
	tree, err := r.metadata.Tree(r.ctx, d.ID)
	if err != nil {
		return err
	}
	if v.end, err = tree.End(r.ctx); err != nil {
		return err
	}
	var origin thinmeta.Tree
	copied := recorded && r.volumes[parent.Name].whole
	if copied {
		if origin, err = r.metadata.Tree(r.ctx, parent.ID); err != nil {
			return err
		}
	}
	descent, err := thinmeta.Descend(r.ctx, origin, tree)
	if err != nil {
		return fmt.Errorf("volume %d: %w", d.ID, err)
	}
	v.last = descent.Newest
	if copied {
		v.descent, v.last = &descent, max(v.last, r.volumes[parent.Name].last)
	}
	r.volumes[d.Name] = v
	return nil
}

// readFilesystems reads the superblocks of the snapshots' volumes.
func (r *volumeReader) readFilesystems() error {
	for _, s := range r.databases.Snapshots {
		d, found := r.databases.Device(s)
		v := r.volumes[d.Name]
		if !found || !v.whole || s.Kind == snapshots.KindView {
			continue
		}
		tree, err := r.metadata.Tree(r.ctx, d.ID)
		if err != nil {
			return err
		}
		content := inactive.NewVolume(r.ctx, tree, r.data, r.pool.blockBytes, sizeOf(d))
		v.superblock, err = filesystem.Read(content)
		if err == nil && v.superblock.Type == filesystem.XFS && s.Kind == snapshots.KindCommitted {
			var clean bool
			clean, err = filesystem.XFSLogClean(content)
			v.dirtyLog = !clean
		}
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		if err != nil {
			v.unreadable = err.Error()
		}
		r.volumes[d.Name] = v
	}
	return nil
}
