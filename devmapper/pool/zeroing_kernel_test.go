package pool_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// requireZeroing checks whether the device's live table zeroes new blocks, and that the device is
// not suspended.
func requireZeroing(t *testing.T, control *devmapper.Control, name string, want bool) {
	t.Helper()
	dev, targets, err := control.Table(name)
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	require.Equal(t, want, !table.SkipBlockZeroing)
	require.False(t, dev.Suspended)
	require.False(t, dev.Inactive)
}

// TestZeroNewBlocks: a volume's blocks keep their data, and new ones show no old data.
func TestZeroNewBlocks(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	const bytesOfVolume = 1 << 20
	p := dmpool.New(t, 64<<20, 4<<20)
	spec := pool.ExistingSpec{Device: p.Name()}
	require.NoError(t, p.CreateThin(1))
	require.NoError(t, p.CreateThin(2))
	old := bytes.Repeat([]byte("old data"), bytesOfVolume/8)
	var files []*os.File
	for i, name := range []string{"zero-1", "zero-2"} {
		_, err := p.Activate(name, thin.ID(i+1), bytesOfVolume, false)
		require.NoError(t, err)
		f, err := os.OpenFile(devmapper.NodePath(name), os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.WriteAt(old, 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		files = append(files, f)
	}
	require.NoError(t, files[1].Close())
	require.NoError(t, p.Control.Deactivate("zero-2"))
	require.NoError(t, p.Delete(2))
	requireZeroing(t, p.Control, p.Name(), false)

	require.NoError(t, spec.ZeroNewBlocks(t.Context(), p.Control), "with a volume in use")
	requireZeroing(t, p.Control, p.Name(), true)
	require.NoError(t, spec.ZeroNewBlocks(t.Context(), p.Control), "again")
	got := make([]byte, len(old))
	_, err := files[0].ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(old, got))
	require.NoError(t, p.CreateThin(3))
	_, err = p.Activate("zero-3", 3, bytesOfVolume, false)
	require.NoError(t, err)
	f, err := os.OpenFile(devmapper.NodePath("zero-3"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	for at := int64(0); at < bytesOfVolume; at += dmpool.BlockSectors * devmapper.SectorBytes {
		_, err = f.WriteAt([]byte("new data"), at)
		require.NoError(t, err)
	}
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.NotContains(t, string(got), "old data")
	require.Equal(t, len(got)-16*len("new data"), bytes.Count(got, []byte{0}))

	// As after a killed call.
	_, err = p.Control.Suspend(p.Name(), devmapper.SuspendOptions{})
	require.NoError(t, err)
	require.NoError(t, spec.Resume(p.Control))
	require.NoError(t, spec.Resume(p.Control), "again")
	requireZeroing(t, p.Control, p.Name(), true)
	another := spec
	another.UUID = "of a pool that is gone"
	require.ErrorIs(t, another.ZeroNewBlocks(t.Context(), p.Control), pool.ErrWrongPool)
	require.NoError(t, another.Resume(p.Control), "another pool is unchanged")
	spec.Device = "none"
	require.ErrorIs(t, spec.ZeroNewBlocks(t.Context(), p.Control), devmapper.ErrNotFound)
	require.NoError(t, spec.Resume(p.Control))
}

// TestZeroNewBlocksOfLVM: LVM records the change, and its volumes stay in use.
func TestZeroNewBlocksOfLVM(t *testing.T) {
	control, lvm := newLVMSpec(t)
	command(t, "pvcreate", "--yes", lvm.Device)
	command(t, "vgcreate", "--yes", "zero-vg", lvm.Device)
	defer func() {
		command(t, "vgremove", "--yes", "zero-vg")
		command(t, "pvremove", "--yes", lvm.Device)
	}()
	command(t, "lvcreate", "--yes", "--type", "thin-pool", "--zero", "n", "--size", "1G", "--name", "the-pool", "zero-vg")
	command(t, "lvcreate", "--yes", "--virtualsize", "64M", "--name", "one", "--thinpool", "the-pool", "zero-vg")
	require.NoError(t, os.WriteFile("/dev/zero-vg/one", bytes.Repeat([]byte("x"), 1<<20), 0o600))
	requireZeroing(t, control, "zero--vg-the--pool-tpool", false)
	require.NoError(t, pool.ExistingSpec{Device: "zero--vg-the--pool"}.ZeroNewBlocks(t.Context(), control))
	requireZeroing(t, control, "zero--vg-the--pool-tpool", true)
	require.Equal(t, "zero", strings.TrimSpace(command(t, "lvs", "--noheadings", "--options", "zero", "zero-vg/the-pool")))
	require.Equal(t, strings.Repeat("x", 1<<20), command(t, "head", "--bytes", "1M", "/dev/zero-vg/one"))
}
