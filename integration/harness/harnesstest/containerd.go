package harnesstest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
)

// Containerd is a running containerd with data of its own.
type Containerd struct{ *harness.Containerd }

// StartContainerd starts containerd with its data on a new file system.
func StartContainerd(t testing.TB, tools harness.Tools, release harness.Release, proxies ...harness.Proxy) *Containerd {
	t.Helper()
	return StartContainerdWith(t, tools, release, harness.Setup{Dir: NewDisk(t), Proxies: proxies})
}

// StartContainerdWith is StartContainerd with another setup, except for its State.
func StartContainerdWith(t testing.TB, tools harness.Tools, release harness.Release, setup harness.Setup) *Containerd {
	t.Helper()
	setup.State = ShortDir(t)
	started, err := harness.NewContainerd(tools, release, setup)
	require.NoError(t, err)
	err = started.Start()
	end(t, started.Process)
	require.NoError(t, err)
	c := &Containerd{started}
	t.Cleanup(func() {
		if err := c.RemoveAll(); err != nil { // a failed test may have left some
			t.Errorf("clean up: %v", err)
		}
		require.NoError(t, c.Stop())
		UnmountBelow(t, c.State)
		// runc leaves it empty, or never made it.
		err := os.Remove(filepath.Join("/run/containerd/runc", c.Namespace))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("clean up: %v", err)
		}
	})
	return c
}

// Ctr runs ctr and returns its standard output.
func (c *Containerd) Ctr(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, "ctr", c.TryCtr, args...)
}

// Nerdctl runs nerdctl with a snapshotter and returns its standard output.
func (c *Containerd) Nerdctl(t testing.TB, snapshotter string, args ...string) string {
	t.Helper()
	return must(t, "nerdctl", func(args ...string) (string, error) { return c.TryNerdctl(snapshotter, args...) }, args...)
}

// AwaitSnapshotter waits until the daemon can use a snapshotter that was unreachable. The snapshotter must have a
// snapshot: without one, the daemon does not call it. The daemon fails all calls between its attempts to connect, which
// are up to 3.6 seconds apart.
func (c *Containerd) AwaitSnapshotter(t testing.TB, name string) {
	t.Helper()
	conn, err := c.Dial()
	require.NoError(t, err)
	defer conn.Close()
	ctx := namespaces.WithNamespace(t.Context(), c.Namespace)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
	require.NoError(t, c.Await(func() bool {
		return sn.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }) == nil
	}))
}

// CheckLayers checks all layers that the daemon has in thinsnap, if it uses a thinsnap.
func (c *Containerd) CheckLayers(t testing.TB) {
	t.Helper()
	if !slices.ContainsFunc(c.Proxies, func(p harness.Proxy) bool { return p.Name == harness.ThinsnapName }) {
		return
	}
	start := time.Now()
	conn, err := c.Dial()
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, fsck.Served(namespaces.WithNamespace(t.Context(), c.Namespace), harness.Snapshotter(conn)))
	t.Logf("%5.1f s  all layers checked", time.Since(start).Seconds())
}

// Connect connects to the daemon. The connection ends with the test.
func (c *Containerd) Connect(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := c.Dial()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}
