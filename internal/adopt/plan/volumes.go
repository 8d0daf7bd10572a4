package plan

import (
	"fmt"
	"io"
	"math"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/inactive"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
)

// readVolumes reads the pool's committed metadata, and the superblocks on its data device.
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
	return nil
}

// A volumeReader reads the volumes of the built-in's devices.
type volumeReader struct {
	*gatherer
	metadata *thinmeta.Metadata
	data     io.ReaderAt

	devices map[string]builtin.Device // by name
	content map[string]snapshots.Kind // of the devices whose file systems are read
	found   map[uint32]thinmeta.Device
	whole   map[uint32]bool
	begun   map[string]bool // devices whose volumes are read, or being read
}

func (r *volumeReader) list() (err error) {
	r.volumes = make(map[string]volume, len(r.databases.Devices))
	r.devices, r.found = make(map[string]builtin.Device), make(map[uint32]thinmeta.Device)
	r.content = make(map[string]snapshots.Kind)
	named := make(map[uint32]bool)
	for _, d := range r.databases.Devices {
		r.devices[d.Name] = d
		named[d.ID] = true
	}
	for _, s := range r.databases.Snapshots {
		if d, found := r.databases.Device(s); found && s.Kind != snapshots.KindView {
			r.content[d.Name] = s.Kind
		}
	}
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

// read reads the volume of a device, and first those from which it was copied.
func (r *volumeReader) read(d builtin.Device) error {
	if r.begun[d.Name] {
		return nil
	}
	r.begun[d.Name] = true
	parent, recorded := r.devices[d.Parent]
	if recorded {
		if err := r.read(parent); err != nil {
			return err
		}
	}
	of, exists := r.found[d.ID]
	v := volume{exists: exists, whole: r.whole[d.ID], mapped: of.MappedBlocks, created: of.CreationTime}
	if v.whole {
		if err := r.readMappings(&v, d, parent); err != nil {
			return fmt.Errorf("volume %d: %w", d.ID, err)
		}
	}
	r.volumes[d.Name] = v
	return nil
}

// readMappings compares the mappings of a device's volume with those of its parent's volume.
func (r *volumeReader) readMappings(v *volume, d, parent builtin.Device) error {
	tree, err := r.metadata.Tree(r.ctx, d.ID)
	if err != nil {
		return err
	}
	if v.end, err = tree.End(r.ctx); err != nil {
		return err
	}
	var origin thinmeta.Tree
	from, copied := r.volumes[parent.Name]
	if copied = copied && from.whole; copied {
		if origin, err = r.metadata.Tree(r.ctx, parent.ID); err != nil {
			return err
		}
	}
	descent, err := thinmeta.Descend(r.ctx, origin, tree)
	if err != nil {
		return err
	}
	v.last = descent.Newest
	v.inherited = d.Parent == "" && descent.Own > 0 && descent.Oldest < v.created
	if copied {
		// The shared mappings were made before the copy, because a copy first increments the pool's
		// time.
		inherited := from.last
		if v.created > 0 {
			inherited = min(inherited, v.created-1)
		}
		v.descent, v.last = &descent, max(v.last, inherited)
	}
	if kind, needed := r.content[d.Name]; needed {
		return r.readFilesystem(v, inactive.NewVolume(r.ctx, tree, r.data, r.pool.blockBytes, sizeOf(d)), kind)
	}
	return nil
}

// readFilesystem reads the superblock of a snapshot's volume. A superblock that cannot be read is
// damage of that volume.
func (r *volumeReader) readFilesystem(v *volume, content io.ReaderAt, kind snapshots.Kind) (err error) {
	v.superblock, err = filesystem.Read(content)
	if err == nil && v.superblock.Type == filesystem.XFS && kind == snapshots.KindCommitted {
		var clean bool
		clean, err = filesystem.XFSLogClean(content)
		v.dirtyLog = !clean
	}
	if err != nil {
		v.unreadable = err.Error()
	}
	return r.ctx.Err()
}
