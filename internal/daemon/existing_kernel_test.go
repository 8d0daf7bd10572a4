package daemon

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// handmade is a foreign pool that the test makes, as with dmsetup.
type handmade struct {
	control      *devmapper.Control
	dir          string // the directory of its files
	name, uuid   string
	blockSectors uint32
}

const (
	handmadeBytes = 1 << 30
	theirs        = 5 // the owner's volume
	theirBytes    = 1 << 20
)

func newHandmade(t *testing.T, uuid string) *handmade {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	h := &handmade{control: control, dir: t.TempDir(), name: "by-hand", uuid: uuid, blockSectors: 128}
	t.Cleanup(func() {
		if err := h.control.Deactivate(h.name); !errors.Is(err, devmapper.ErrNotFound) {
			require.NoError(t, err)
		}
	})
	h.up(t)
	require.NoError(t, h.pool().CreateThin(theirs))
	require.NoError(t, h.pool().SetTransactionID(0, 41))
	h.onTheirs(t, func(path string) { require.NoError(t, os.WriteFile(path, h.content(), 0o600)) })
	return h
}

func (h *handmade) pool() *thin.Pool { return thin.NewPool(h.control, h.name) }

func (h *handmade) content() []byte {
	return bytes.Repeat([]byte(h.dir), theirBytes/len(h.dir)+1)[:theirBytes]
}

// up loads the pool into the kernel, and down removes it.
func (h *handmade) up(t *testing.T) {
	t.Helper()
	attach := func(file string, size int64) *blockdev.Loop {
		f, err := os.OpenFile(filepath.Join(h.dir, file), os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
		loop, err := blockdev.LoopAttach(f.Name(), blockdev.LoopOptions{DirectIO: true})
		require.NoError(t, err)
		return loop
	}
	data, meta := attach("data", handmadeBytes), attach("metadata", 16<<20)
	target, err := thin.PoolTable{Metadata: meta.Number(), Data: data.Number(), BlockSectors: h.blockSectors}.Target(handmadeBytes / 512)
	require.NoError(t, err)
	_, err = h.control.Activate(h.name, h.uuid, []devmapper.Target{target}, false)
	require.NoError(t, errors.Join(err, data.Close(), meta.Close()))
}

func (h *handmade) down(t *testing.T) {
	t.Helper()
	require.NoError(t, h.control.Deactivate(h.name))
}

// onTheirs calls f with the node of the owner's volume.
func (h *handmade) onTheirs(t *testing.T, f func(path string)) {
	t.Helper()
	pool, err := h.control.Info(h.name)
	require.NoError(t, err)
	_, err = h.control.Activate("theirs", "", []devmapper.Target{thin.Target(pool.Number(), theirs, theirBytes/512)}, false)
	require.NoError(t, err)
	f(devmapper.NodePath("theirs"))
	require.NoError(t, h.control.Deactivate("theirs"))
}

func (h *handmade) ids(t *testing.T) []thin.ID {
	t.Helper()
	_, err := h.pool().Status(false)
	require.NoError(t, err)
	file, err := os.Open(filepath.Join(h.dir, "metadata"))
	require.NoError(t, err)
	defer file.Close()
	m, err := thinmeta.Open(file)
	require.NoError(t, err)
	var ids []thin.ID
	for d, err := range m.Devices(t.Context()) {
		require.NoError(t, err)
		ids = append(ids, thin.ID(d.ID))
	}
	return ids
}

// requireTheirs requires that the owner's volume is unchanged, and that the pool has no volumes
// beyond it and the given ones.
func (h *handmade) requireTheirs(t *testing.T, others ...thin.ID) {
	t.Helper()
	h.onTheirs(t, func(path string) {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(h.content(), content))
	})
	require.Equal(t, slices.Sorted(slices.Values(append(others, theirs))), h.ids(t))
	status, err := h.pool().Status(true)
	require.NoError(t, err)
	require.EqualValues(t, 41, status.TransactionID)
}

// inPool returns a configuration for the foreign pool.
func inPool(t *testing.T, device string) config.Config {
	t.Helper()
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Pool.Mode, c.Pool.Existing.Device = config.ModeExisting, device
	c.Filesystem.BaseSize = 64 << 20
	return c
}

// deactivateOurs removes the volumes of a closed root from the kernel, as a reboot does.
func deactivateOurs(t *testing.T, control *devmapper.Control, prefix string) {
	t.Helper()
	devices, err := control.List()
	require.NoError(t, err)
	for _, dev := range devices {
		if matched, _ := filepath.Match(prefix+"-snap-*", dev.Name); matched {
			require.NoError(t, control.Deactivate(dev.Name))
		}
	}
}

func TestExistingPool(t *testing.T) {
	h := newHandmade(t, "")
	c := inPool(t, "/dev/mapper/by-hand")
	c.Pool.SparesMax = 0
	ctx := t.Context()

	// An id in thinsnap's range is taken.
	const taken = 1<<23 + 5
	require.NoError(t, h.pool().CreateThin(taken))
	_, err := PlanPool(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "the first is 8388613")
	h.requireTheirs(t, taken)
	require.NoError(t, h.pool().Delete(taken))

	lines, err := PlanPool(ctx, c)
	require.NoError(t, err)
	require.Equal(t, []string{`# /dev/mapper/by-hand, with UUID "" and blocks of 65536 bytes, is used as it is`}, lines)
	_, err = CreatePool(ctx, c)
	require.NoError(t, err)
	h.requireTheirs(t)
	_, err = CreatePool(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)

	d, err := Open(ctx, c)
	require.NoError(t, err)
	ids := layers(t, d, "one", "two")
	require.GreaterOrEqual(t, ids[0], thin.ID(metadata.FirstInForeign))
	_, err = d.snapshotter.Prepare(ctx, "box", "two")
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Remove(ctx, "box"))
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	kinds, r := findings(t, d, false)
	require.Empty(t, kinds)
	require.Equal(t, len(h.ids(t))-1, r.Examined.Volumes, "without the owner's volume")
	info, err := d.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, "by-hand", info.Pool.Name)
	require.Equal(t, "existing", info.Pool.Mode)
	require.EqualValues(t, 41, info.Pool.TransactionID)
	require.Equal(t, filepath.Join(h.dir, "data"), info.Pool.Data.LoopFile)
	_, err = d.ExtendPool(ctx, admin.Extension{Data: 2 * handmadeBytes})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "its owner must extend it")
	// The owner reads the pool's metadata.
	require.NoError(t, h.pool().ReserveMetadataSnap())
	require.NoError(t, d.Close())
	d, err = Open(ctx, c)
	require.NoError(t, err)
	r, err = d.Check(ctx, true)
	require.NoError(t, err)
	require.Len(t, r.Findings, 1)
	require.NoError(t, h.pool().ReleaseMetadataSnap(), "not released before")
	require.NoError(t, d.Close())
	_, err = CheckPool(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, err = RepairPool(ctx, c, 0, nil)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)

	for want, change := range map[string]func(*config.Config){
		"pool.mode is loop in the configuration, but the pool was made with existing": func(c *config.Config) { c.Pool.Mode = config.ModeLoop },
		"pool.name is other":                func(c *config.Config) { c.Pool.Name = "other" },
		"pool.existing.device is elsewhere": func(c *config.Config) { c.Pool.Existing.Device = "elsewhere" },
	} {
		changed := c
		change(&changed)
		_, err := Open(ctx, changed)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, want)
	}

	// After a reboot the owner must activate the pool.
	deactivateOurs(t, h.control, c.Pool.Name)
	h.down(t)
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "its owner must activate it")
	r, err = CheckRoot(ctx, c, false)
	require.NoError(t, err)
	require.Len(t, r.Findings, 1)
	refusesOthers(t, h, c, ids)
	h.up(t)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	requireLayers(t, d, "two", "one", "two")
	layers(t, d, "three")
	require.NoError(t, d.Close())

	destroy(t, c)
	h.requireTheirs(t)
	require.NoFileExists(t, rootdir.Store(c.Root))
}

// refusesOthers tries other pools in place of the root's pool.
func refusesOthers(t *testing.T, h *handmade, c config.Config, ids []thin.ID) {
	t.Helper()
	dir, blockSectors := h.dir, h.blockSectors
	other := func(blocks uint32, want string, volumes ...thin.ID) {
		h.dir, h.blockSectors = t.TempDir(), blocks
		defer func() { h.dir, h.blockSectors = dir, blockSectors }()
		h.up(t)
		defer h.down(t)
		for _, id := range volumes {
			require.NoError(t, h.pool().CreateThin(id))
		}
		_, err := Open(t.Context(), c)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, want)
		require.Error(t, DestroyPool(t.Context(), c))
		require.Equal(t, volumes, h.ids(t), "unchanged")
		status, err := h.pool().Status(true)
		require.NoError(t, err)
		require.Zero(t, status.TransactionID)
	}
	base := thin.ID(metadata.FirstInForeign)
	other(256, "blocks of 131072 bytes, not of 65536", theirs, base)
	other(128, "is not in the pool", append([]thin.ID{theirs}, ids...)...)
	other(128, "has a file system with UUID", append([]thin.ID{theirs, base}, ids...)...)
	h.uuid = "given"
	other(128, `has UUID "given", but had none before`, theirs)
	h.uuid = ""
}

func TestExistingPoolWithAUUID(t *testing.T) {
	h := newHandmade(t, "THEIRS-1")
	c := inPool(t, "by-hand")
	ctx := t.Context()
	d, err := Open(ctx, c)
	require.NoError(t, err)
	require.Equal(t, "THEIRS-1", d.pool.UUID())
	layers(t, d, "one")
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, c.Pool.Name)

	run(t, "dmsetup", "rename", h.name, "renamed")
	_, err = Open(ctx, c)
	require.ErrorContains(t, err, "has the name renamed, not by-hand")
	run(t, "dmsetup", "rename", "renamed", h.name)
	h.down(t)
	h.uuid = "THEIRS-2"
	h.up(t)
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, `has UUID "THEIRS-2", not "THEIRS-1"`)
	h.down(t)
	h.uuid = "THEIRS-1"
	h.up(t)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	requireLayers(t, d, "one", "one")
	require.NoError(t, d.Close())
	destroy(t, c)
	h.requireTheirs(t)
}
