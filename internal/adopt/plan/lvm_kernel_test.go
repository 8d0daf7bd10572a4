package plan_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	dm "github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func lvm(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
}

// TestPlanOnPoolOfLVM plans on an LVM pool that does not zero blocks, with and without a volume of
// LVM in it.
func TestPlanOnPoolOfLVM(t *testing.T) {
	dmtest.RequireThorough(t)
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	if !dm.UdevRuns() {
		t.Setenv("DM_DISABLE_UDEV", "1")
	}
	disk := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, disk, "THINSNAP_DISK0 names a disk that may be overwritten")
	control, err := dm.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	lvm(t, "pvcreate", "--yes", disk)
	lvm(t, "vgcreate", "--yes", "some-vg", disk)
	t.Cleanup(func() {
		lvm(t, "vgremove", "--yes", "some-vg")
		lvm(t, "pvremove", "--yes", disk)
	})
	lvm(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "512M", "--zero", "n", "--name", "the-pool", "some-vg")
	for _, layered := range []bool{false, true} {
		const name = "some--vg-the--pool"
		pool := thin.NewPool(control, name)
		if layered {
			lvm(t, "lvcreate", "--yes", "--virtualsize", "64M", "--name", "theirs", "--thinpool", "the-pool", "some-vg")
			pool = thin.NewPool(control, name+"-tpool")
		}
		n := nodeOn(t, pool, control, "/dev/mapper/"+name+"_tdata", "/dev/mapper/"+name+"_tmeta")
		n.start()
		if layered { // LVM also counts from 1
			ctx, sn := n.in("default")
			_, err := sn.Prepare(ctx, "box", "")
			require.Error(t, err)
		}
		n.layer("default", "layer", "")
		n.stop()
		o := n.options()
		o.Config.Pool.Existing.Device = "some-vg/the-pool"
		p := n.make(o)
		require.Empty(t, p.Obstacles)
		require.True(t, p.Possible())
		require.Equal(t, "some-vg/the-pool", p.Reload.LVM)
		require.True(t, strings.HasPrefix(p.Adoption.Pool.Existing.UUID, "LVM-"))
		require.Equal(t, name, p.Adoption.Pool.Existing.MappedDevice)
		require.Equal(t, plan.Adopted, p.Rows[0].Becomes)
		if !layered {
			require.NoError(t, n.Delete(1))
			continue
		}
		require.Equal(t, 1, p.Foreign, "LVM's own")
	}
	lvm(t, "vgchange", "--activate", "n", "some-vg")
	o := plan.Options{ContainerdRoot: t.TempDir(), RootPath: t.TempDir(), Pool: "some--vg-the--pool", From: "devmapper", Proxy: "thinsnap"}
	o.Config.Root = t.TempDir()
	p, err := plan.Make(t.Context(), o)
	require.NoError(t, err)
	require.Contains(t, p.Obstacles, plan.Obstacle{
		Subject: `pool "some--vg-the--pool"`, Text: "it is not active",
		Remedy: "load it as at boot; for a pool of LVM, run `vgchange -ay`, or `lvchange -ay` with its name",
	})
}
