package daemon

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// damagedRoot returns the configuration of a root on a disk, because thin_check uses direct I/O.
func damagedRoot(t *testing.T) config.Config {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := config.Default()
	c.Root = filepath.Join(faulty.New(t, 512<<20).Mount(t, true), "root")
	c.Pool.Name = "repair-" + filepath.Base(filepath.Dir(t.TempDir()))
	c.Pool.Loop.DataSize, c.Pool.Loop.MetadataSize = 256<<20, 4<<20
	c.Filesystem.BaseSize = 64 << 20
	c.Pool.SparesMax = 0
	return c
}

func always(repair.Report, []string) (bool, error) { return true, nil }

// recordFiles records the files of a pool in a new root, without creating them.
func recordFiles(t *testing.T, c config.Config, data, file string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(c.Root, "pool"), 0o700))
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: c.Pool.Name, Mode: metadata.ModeLoop, Name: c.Pool.Name, BlockSize: uint64(c.Pool.BlockSize),
			Loop: metadata.LoopFiles{DataFile: data, MetadataFile: file},
		})
	}))
	require.NoError(t, store.Close())
}

// requireLayers requires that a layer has the files of all its parents, with their contents.
func requireLayers(t *testing.T, d *Daemon, top string, names ...string) {
	t.Helper()
	mounts, err := d.snapshotter.View(t.Context(), "look at "+top, top)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		for _, name := range names {
			content, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Equal(t, make([]byte, 1<<20), content)
		}
		return nil
	}))
	require.NoError(t, d.snapshotter.Remove(t.Context(), "look at "+top))
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
}

// mappingRoot returns the metadata block of the root of a volume's mapping tree. All details must
// fit in one block.
func mappingRoot(t *testing.T, b []byte, volume thin.ID) uint64 {
	t.Helper()
	node := b[binary.LittleEndian.Uint64(b[320:])*4096:]
	count, limit := binary.LittleEndian.Uint32(node[16:]), binary.LittleEndian.Uint32(node[20:])
	for i := range count {
		if binary.LittleEndian.Uint64(node[32+8*i:]) == uint64(volume) {
			return binary.LittleEndian.Uint64(node[32+8*limit+8*i:])
		}
	}
	t.Fatalf("volume %d has no tree", volume)
	return 0
}

// TestRepairOfADamagedPool damages and repairs the metadata of a loop pool.
func TestRepairOfADamagedPool(t *testing.T) {
	c := damagedRoot(t)
	ctx := t.Context()
	d, err := Open(ctx, c)
	require.NoError(t, err)
	t.Cleanup(func() { destroy(t, c) })
	layers(t, d, "one", "two")
	other := layers(t, d, "other")[0]
	backing, err := d.pool.Backing()
	require.NoError(t, err)
	file := backing.MetadataFile

	// A pool in use is not changed.
	_, err = CheckPool(ctx, c)
	require.ErrorIs(t, err, metadata.ErrLocked)
	require.ErrorContains(t, err, "systemctl stop thinsnap")
	mounts, err := d.snapshotter.Prepare(ctx, "box", "two")
	require.NoError(t, err)
	path := d.pool.VolumePath(deviceOf(t, d, "box"))
	require.NoError(t, d.Close())
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		_, err := RepairPool(ctx, c, 0, always)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, path+" on "+dir)
		return nil
	}))
	report, err := CheckPool(ctx, c)
	require.NoError(t, err)
	require.True(t, report.Good(), report)
	_, err = RepairPool(ctx, c, 0, always)
	require.ErrorIs(t, err, repair.ErrNothingToDo)
	_, _, err = UndoRepair(ctx, c, true)
	require.ErrorIs(t, err, repair.ErrNoBackup)

	spoil := func(at, bytes uint64) []byte {
		bad, err := os.ReadFile(file)
		require.NoError(t, err)
		for i := range bad[at : at+bytes] {
			bad[at:][i] ^= 0x5a
		}
		require.NoError(t, os.WriteFile(file, bad, 0o600))
		report, err := CheckPool(ctx, c)
		require.NoError(t, err)
		require.True(t, report.Damaged())
		return bad
	}
	start := func() {
		var err error
		d, err = Open(ctx, c)
		require.NoError(t, err)
	}

	// The superblock does not match its checksum.
	bad := spoil(100, 1)
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorContains(t, err, "thinsnap pool repair")
	var lines []string
	_, err = RepairPool(ctx, c, 0, func(_ repair.Report, plan []string) (bool, error) { lines = plan; return false, nil })
	require.NoError(t, err)
	require.Len(t, lines, 7)
	requireFile(t, file, bad)
	repaired, err := RepairPool(ctx, c, 0, always)
	require.NoError(t, err)
	require.Empty(t, repaired.Losses)
	require.True(t, repaired.Compared)
	requireFile(t, repaired.Backup, bad)
	_, kept, err := UndoRepair(ctx, c, false)
	require.NoError(t, err)
	requireFile(t, file, bad)
	restored, _, err := UndoRepair(ctx, c, false)
	require.NoError(t, err)
	require.Equal(t, kept, restored)
	start()
	requireLayers(t, d, "two", "one", "two")
	requireLayers(t, d, "other", "other")
	layers(t, d, "three")
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
	require.NoError(t, d.Close())
	_, _, err = UndoRepair(ctx, c, false)
	require.ErrorIs(t, err, repair.ErrUsedSince)

	// The tree of one volume is lost.
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	bad = spoil(mappingRoot(t, good, other)*4096, 4096)
	repaired, err = RepairPool(ctx, c, 0, always)
	require.NoError(t, err)
	t.Log(repaired.Losses)
	require.Len(t, repaired.Losses, 1, "only the damaged volume")
	require.Contains(t, repaired.Losses[0], `snapshot "other"`)
	start()
	requireLayers(t, d, "three", "three")
	requireLayers(t, d, "two", "one", "two")
	require.NoError(t, d.snapshotter.Remove(ctx, "other"))
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	layers(t, d, "other")
	requireLayers(t, d, "other", "other")
	kinds, _ = findings(t, d, false)
	require.Empty(t, kinds)
	require.NoError(t, d.Close())
	_, _, err = UndoRepair(ctx, c, true)
	require.NoError(t, err)
	requireFile(t, file, bad)
}

func requireFile(t *testing.T, file string, content []byte) {
	t.Helper()
	is, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, bytes.Equal(is, content), "%s has other content", file)
}

// TestRepairAfterAFailedWrite makes the kernel mark the metadata needs_check.
func TestRepairAfterAFailedWrite(t *testing.T) {
	c := damagedRoot(t)
	ctx := t.Context()
	disk := faulty.New(t, 64<<20)
	data := filepath.Join(disk.Mount(t, false), "data")
	require.NoError(t, os.WriteFile(data, make([]byte, 48<<20), 0o600))
	recordFiles(t, c, data, filepath.Join(c.Root, "pool", "metadata"))
	c.Pool.Loop.DataSize = 48 << 20
	d, err := Open(ctx, c)
	require.NoError(t, err)
	t.Cleanup(func() { destroy(t, c) })
	layers(t, d, "one")
	mounts, err := d.snapshotter.Prepare(ctx, "broken", "one")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4<<20), 0o600)
		disk.Fail(t)
		return err
	}))
	require.Error(t, d.snapshotter.Commit(ctx, "two", "broken"))
	_, err = d.snapshotter.Prepare(ctx, "box", "one")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "thinsnap pool repair")
	status, err := d.pool.Status(ctx)
	require.NoError(t, err)
	t.Log(status.String())
	require.True(t, status.NeedsCheck)
	require.True(t, requireRefusal(t, d, admin.StateReadOnly, "needs a check", "thinsnap pool repair").NeedsCheck)
	require.NoError(t, d.Close())
	disk.Heal(t)

	report, err := CheckPool(ctx, c)
	require.NoError(t, err)
	require.True(t, report.NeedsCheck)
	require.False(t, report.Damaged(), report)
	disk.Remount(t, filepath.Dir(data))
	repaired, err := RepairPool(ctx, c, 0, always)
	require.NoError(t, err)
	require.Empty(t, repaired.Losses)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	requireLayers(t, d, "one", "one")
	layers(t, d, "again")
	requireLayers(t, d, "again", "again")
	require.NoError(t, d.Close())
}
