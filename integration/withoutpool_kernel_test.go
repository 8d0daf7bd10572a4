package integration

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
)

// TestDaemonWithoutItsPool: a daemon that cannot open its pool answers with the reason, and opens the pool once that is
// possible. Meanwhile it does not block other snapshotters, although its differ is the first, nor check, because
// it does not lock its root.
func TestDaemonWithoutItsPool(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	root := filepath.Join(faulty.New(t, 2<<30).Mount(t, true), "root") // thin_check needs direct I/O
	d := harnesstest.StartThinsnapWith(t, tools, "without-pool", harness.Options{NoSpares: true, Root: root})
	ctx, sn := t.Context(), d.Snapshotter(t)
	_, err = sn.Prepare(ctx, "box", "")
	require.NoError(t, err)
	d.Stop(t)
	require.Contains(t, d.Run(t, "pool", "check"), "no problems found")
	file := filepath.Join(d.Root, "pool", "data")
	require.NoError(t, os.Rename(file, file+".away"))

	d.Launch(t)
	var notOpen error
	require.Eventually(t, func() bool {
		_, notOpen = d.Admin().Info(ctx)
		return errors.Is(notOpen, admin.ErrNotOpen)
	}, time.Minute, 20*time.Millisecond)
	sn = d.Snapshotter(t)
	_, err = sn.Stat(ctx, "box")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, file)
	_, err = d.TryRun(nil, "info")
	require.ErrorContains(t, err, "the pool is not open")
	require.ErrorContains(t, err, file)
	_, err = d.TryRun(nil, "check")
	require.ErrorContains(t, err, "problem: pool: the pool is not open")
	_, err = d.TryRun(nil, "pool", "destroy", "--yes")
	require.ErrorContains(t, err, "would create a new pool")

	image, proxy := harnesstest.StartRegistry(t, tools).Busybox, d.Proxy()
	proxy.Differ = "thinsnap-diff"
	c := harnesstest.StartContainerd(t, tools, tools.Releases[0], proxy)
	c.Pull(t, "overlayfs", image, "--local")
	require.Contains(t, c.Ctr(t, "run", "--rm", "--snapshotter", "overlayfs", image, "box", "echo", "works"), "works")
	_, err = c.TryCtr("snapshots", "--snapshotter", harness.ThinsnapName, "prepare", "box")
	require.ErrorContains(t, err, file)
	c.RemoveImage(t, image)

	require.NoError(t, os.Rename(file+".away", file))
	require.Eventually(t, d.Ready, 2*time.Minute, 20*time.Millisecond)
	info, err := sn.Stat(ctx, "box")
	require.NoError(t, err)
	require.Equal(t, "box", info.Name)
	require.Contains(t, d.Run(t, "check"), "no problems found")
	require.NoError(t, sn.Remove(ctx, "box"))
}
