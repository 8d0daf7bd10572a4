package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// lookAtNewPool plans the pool as the next start would, with its disk and the free space. In mode
// "existing" it only looks for the pool, because a plan could have LVM activate it.
func lookAtNewPool(ctx context.Context, m *machine) finding {
	l := m.loaded()
	switch {
	case l.err != nil:
		return skipped("the configuration is invalid")
	case m.daemon().answers():
		return skipped("a daemon runs")
	case l.config.Pool.Mode == config.ModeExisting:
		return m.existingPool(l.config)
	}
	lines, complete, err := m.plan(ctx, l.config)
	switch {
	case errors.Is(err, metadata.ErrLocked):
		return skipped("another process has the root open")
	case err != nil:
		return problem(err.Error(), m.planRemedy(l.config, complete, err)...)
	case complete:
		return ok("pool %s was made, as the configuration describes it", l.config.Pool.Name)
	}
	return ok("the first start would make it:\n%s", strings.Join(lines, "\n"))
}

// plan returns the commands by which a start would make the pool, and whether the pool is complete.
func (m *machine) plan(ctx context.Context, c config.Config) (lines []string, complete bool, err error) {
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		if err := m.requireFreeName(ctx, nil, c); err != nil {
			return nil, false, err
		}
		lines, err := provision.Plan(ctx, nil, c)
		return lines, false, err
	}
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if stored, err := provision.Read(ctx, store); err == nil && stored.Complete() {
		complete = true
		for _, file := range stored.Files() {
			if _, err := os.Stat(file); err != nil {
				return nil, false, fmt.Errorf("the store records a pool, but one of its files is missing: %w", err)
			}
		}
	}
	if lines, err = provision.Plan(ctx, store, c); err == nil {
		err = m.requireFreeName(ctx, store, c)
	}
	return lines, complete, err
}

// requireFreeName fails if another mapped device has the new pool's name. The store may be nil.
func (m *machine) requireFreeName(ctx context.Context, store *metadata.Store, c config.Config) (err error) {
	if !m.host.exists(controlNode) || !m.host.hasMisc("device-mapper") {
		return nil
	}
	control, err := devmapper.Open()
	if err != nil {
		return nil // another check reports it
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	return provision.RequireName(ctx, store, control, c)
}

// planRemedy returns the remedy for an error of plan. complete tells that the recorded pool was made.
func (m *machine) planRemedy(c config.Config, complete bool, err error) []string {
	const lsblk = "lsblk --output NAME,SIZE,TYPE,FSTYPE,MOUNTPOINTS"
	edit := "sudoedit " + quote(m.File)
	switch {
	case errdefs.IsResourceExhausted(err):
		return []string{"df -h " + quote(nearest(c.Root)), edit +
			"    # make room there, or set root to a directory on a larger disk"}
	case errors.Is(err, pool.ErrNameTaken):
		return []string{"dmsetup ls", edit + "    # choose another pool.name, or remove the device"}
	case errors.Is(err, pool.ErrGroupTaken):
		return []string{"vgs", edit + "    # choose another pool.name, or, if the group's data is not needed, " +
			"remove the group with vgremove"}
	case c.Pool.Mode == config.ModeDirectLVM && complete && errors.Is(err, pool.ErrWrongPool):
		return []string{"pvs", lsblk, "# attach the pool's disk, and leave pool.direct_lvm.device as it is"}
	case c.Pool.Mode == config.ModeDirectLVM:
		return []string{lsblk, edit + "    # pool.direct_lvm.device"}
	}
	return []string{"thinsnap pool create --dry-run", edit}
}

// existingPool looks for a pool in mode "existing" in the kernel.
func (m *machine) existingPool(c config.Config) finding {
	device := c.Pool.Existing.Device
	if !m.host.exists(controlNode) || !m.host.hasMisc("device-mapper") {
		return skipped("device-mapper is not loaded")
	}
	control, err := devmapper.Open()
	if err != nil {
		return skipped("device-mapper cannot be asked: %v", err)
	}
	defer control.Close()
	_, found, err := pool.ExistingSpec{Name: c.Pool.Name, Device: device}.OpenLoaded(control)
	switch {
	case errors.Is(err, devmapper.ErrNotFound) && isLVM(c):
		return ok("%s is not active; the start has LVM activate it", device)
	case errors.Is(err, devmapper.ErrNotFound):
		return problem(device+" is not active: its owner has to activate it before thinsnap starts",
			"dmsetup ls --target thin-pool",
			"# if it is LVM's: vgchange -ay VG")
	case err != nil:
		return problem(err.Error(), "dmsetup table "+quote(pool.DeviceName(device)))
	}
	return ok("%s is active, with blocks of %s", device, size(found.BlockBytes))
}
