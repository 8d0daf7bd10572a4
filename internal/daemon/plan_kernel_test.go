package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

func TestPlanOfANameThatIsTaken(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := config.Default()
	c.Root, c.Pool.Name = filepath.Join(t.TempDir(), "root"), "plantaken"
	_, err := PlanPool(t.Context(), c)
	require.NoError(t, err)
	control, err := devmapper.Open()
	require.NoError(t, err)
	_, err = control.Create(c.Pool.Name, "OTHER-1")
	require.NoError(t, err)
	defer func() {
		_, err := control.Remove(c.Pool.Name, devmapper.RemoveOptions{})
		require.NoError(t, err)
		require.NoError(t, control.Close())
	}()
	lines, err := PlanPool(t.Context(), c)
	require.Len(t, lines, 2)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	require.NoDirExists(t, c.Root)

	// A start makes neither the record nor the files, so another name can be configured.
	_, err = CreatePool(t.Context(), c)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "nothing was changed")
	require.NoDirExists(t, filepath.Join(c.Root, "pool"))
	_, err = PlanPool(t.Context(), c)
	require.ErrorIs(t, err, pool.ErrNameTaken, "the root has a store")
	other := c
	other.Pool.Name = "planfree"
	_, err = PlanPool(t.Context(), other)
	require.NoError(t, err)

	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: "i", Mode: metadata.ModeLoop, Name: c.Pool.Name, BlockSize: uint64(c.Pool.BlockSize),
			Loop: metadata.LoopFiles{DataFile: "pool/data", MetadataFile: "pool/metadata", Allocated: true},
		})
	}))
	require.NoError(t, store.Close())
	_, err = PlanPool(t.Context(), c)
	require.ErrorIs(t, err, pool.ErrNameTaken, "a crash left the pool incomplete")
	_, err = CreatePool(t.Context(), c)
	require.ErrorIs(t, err, pool.ErrNameTaken)
	require.NoDirExists(t, filepath.Join(c.Root, "pool"))
}

// TestPlanOnADisk: a dry run for a missing or used disk fails as a start does.
func TestPlanOnADisk(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, disk, "THINSNAP_DISK0 names a disk that may be overwritten")
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Pool.Mode, c.Pool.DirectLVM.Device = config.ModeDirectLVM, "/dev/missing"
	_, err := PlanPool(t.Context(), c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "/dev/missing: no such file or directory")

	c.Pool.DirectLVM.Device = disk
	lines, err := PlanPool(t.Context(), c)
	require.NoError(t, err)
	require.NotEmpty(t, lines)
	mkfs, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput()
	require.NoError(t, err, "%s", mkfs)
	dir := t.TempDir()
	require.NoError(t, unix.Mount(disk, dir, "ext4", 0, ""))
	_, err = PlanPool(t.Context(), c)
	require.NoError(t, unix.Unmount(dir, 0))
	require.ErrorIs(t, err, pool.ErrDeviceTaken)
	require.ErrorContains(t, err, "is in use: it is mounted")
	_, err = PlanPool(t.Context(), c)
	require.ErrorIs(t, err, pool.ErrDeviceTaken)
	require.ErrorContains(t, err, "is not empty (ext4)")
	wiped, err := exec.Command("wipefs", "--all", "--quiet", disk).CombinedOutput()
	require.NoError(t, err, "%s", wiped)
	require.NoDirExists(t, c.Root)
}
