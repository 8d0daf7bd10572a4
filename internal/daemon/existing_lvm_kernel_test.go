package daemon

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/metadata"
)

// existingOfLVM creates a pool with LVM, and a volume in it.
func existingOfLVM(t *testing.T) *devmapper.Control {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, disk, "THINSNAP_DISK0 names a disk that may be overwritten")
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	run(t, "pvcreate", "--yes", disk)
	run(t, "vgcreate", "--yes", "some-vg", disk)
	t.Cleanup(func() {
		if t.Failed() {
			deactivateOurs(t, control, "thinsnap")
		}
		run(t, "vgremove", "--yes", "some-vg")
		run(t, "pvremove", "--yes", disk)
	})
	run(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "2G", "--name", "the-pool", "some-vg")
	return control
}

func lvmVolume(t *testing.T, name string) {
	t.Helper()
	run(t, "lvcreate", "--yes", "--virtualsize", "64M", "--name", name, "--thinpool", "the-pool", "some-vg")
	require.NoError(t, os.WriteFile("/dev/mapper/some--vg-"+name, bytes.Repeat([]byte(name), 1<<18), 0o600))
}

func requireLVMVolume(t *testing.T, name string) {
	t.Helper()
	want := bytes.Repeat([]byte(name), 1<<18)
	got := make([]byte, len(want))
	f, err := os.Open("/dev/mapper/some--vg-" + name)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

// lvmState returns the pool's LVM properties that must not change.
func lvmState(t *testing.T) string {
	t.Helper()
	return run(t, "lvs", "--noheadings", "--options", "lv_name,lv_uuid,transaction_id,thin_id,lv_size,chunk_size", "some-vg")
}

func TestExistingPoolOfLVM(t *testing.T) {
	control := existingOfLVM(t)
	c := inPool(t, "some-vg/the-pool")
	c.Pool.SparesMax = 0
	ctx := t.Context()
	d, err := Open(ctx, c)
	require.NoError(t, err)
	require.Equal(t, "some--vg-the--pool", d.pool.Name())
	layers(t, d, "one")
	// To create its first volume, LVM removes the pool from the kernel and loads it under another
	// name.
	_, err = d.snapshotter.Prepare(ctx, "early", "one")
	require.NoError(t, err)
	out, err := exec.Command("lvcreate", "--yes", "--virtualsize", "64M", "--name", "theirs", "--thinpool", "the-pool", "some-vg").CombinedOutput()
	require.Error(t, err, "%s", out)
	require.NoError(t, d.snapshotter.Remove(ctx, "early"))
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	lvmVolume(t, "theirs")
	require.Equal(t, "some--vg-the--pool-tpool", d.pool.Name())
	layers(t, d, "two")
	_, err = d.snapshotter.Prepare(ctx, "box", "one")
	require.NoError(t, err)
	lvmVolume(t, "second")
	requireLVMVolume(t, "second")
	run(t, "lvextend", "--size", "+64M", "some-vg/the-pool")
	run(t, "lvremove", "--yes", "some-vg/second")
	state := lvmState(t)
	layers(t, d, "three")
	require.NoError(t, d.snapshotter.Remove(ctx, "box"))
	requireLVMVolume(t, "theirs")
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
	info, err := d.Info(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 3, info.Pool.TransactionID, "LVM's own count")
	_, err = d.ExtendPool(ctx, admin.Extension{Data: 3 << 30})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "lvextend on some-vg/the-pool")
	require.Equal(t, state, lvmState(t), "thinsnap has not changed it")
	requireLayers(t, d, "one", "one")
	require.NoError(t, d.Close())

	// After a reboot.
	deactivateOurs(t, control, c.Pool.Name)
	run(t, "vgchange", "--activate", "n", "some-vg")
	d, err = Open(ctx, c)
	require.NoError(t, err)
	requireLayers(t, d, "one", "one")
	require.NoError(t, d.Close())
	run(t, "vgchange", "--activate", "y", "some-vg")
	requireLVMVolume(t, "theirs")
	require.Equal(t, state, lvmState(t))

	// Another pool under the same name.
	deactivateOurs(t, control, c.Pool.Name)
	run(t, "vgchange", "--activate", "n", "some-vg")
	run(t, "lvrename", "some-vg/the-pool", "some-vg/kept")
	run(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "1G", "--name", "the-pool", "some-vg")
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, ", not \"LVM-")
	run(t, "lvremove", "--yes", "some-vg/the-pool")
	run(t, "lvrename", "some-vg/kept", "some-vg/the-pool")

	destroy(t, c)
	run(t, "vgchange", "--activate", "y", "some-vg")
	require.Equal(t, state, lvmState(t))
	requireLVMVolume(t, "theirs")
	lvmVolume(t, "third")
	requireLVMVolume(t, "third")
	require.Empty(t, volumesOf(t, control, metadata.FirstInForeign))
}

// volumesOf returns the ids of the volumes in the LVM pool, from first on.
func volumesOf(t *testing.T, control *devmapper.Control, first thin.ID) []thin.ID {
	t.Helper()
	_, targets, err := control.Table("some--vg-the--pool-tpool")
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	path, err := blockdev.Path(table.Metadata)
	require.NoError(t, err)
	dev, err := blockdev.OpenDirect(path)
	require.NoError(t, err)
	defer dev.Close()
	m, err := thinmeta.Open(dev)
	require.NoError(t, err)
	whole, err := m.Whole(t.Context(), uint32(first), metadata.MaxDevice)
	require.NoError(t, err)
	ids := slices.Sorted(maps.Keys(whole))
	all := make([]thin.ID, 0, len(ids))
	for _, id := range ids {
		all = append(all, thin.ID(id))
	}
	return all
}

func TestExistingPoolThatDoesNotZero(t *testing.T) {
	existingOfLVM(t)
	c := inPool(t, "/dev/some-vg/the-pool")
	run(t, "lvchange", "--yes", "--zero", "n", "some-vg/the-pool")
	_, err := Open(t.Context(), c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "`lvchange --zero y some-vg/the-pool`")
	_, err = Open(t.Context(), inPool(t, "some-vg/none"))
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "`lvchange -ay some-vg/none`")
}
