package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// another is a thinsnap with snapshots on xfs. This process calls its differ in place of a containerd; diff.containerd
// names the containerd that gets the layers.
type another struct {
	*harnesstest.Thinsnap

	b            *testbed        // of that containerd
	ctx          context.Context //nolint:containedctx // carries the namespace of all calls
	lower, upper []mount.Mount
}

// testDiffOfAnother compares a mounted snapshot, and a snapshot while thinsnap is being stopped.
func testDiffOfAnother(t *testing.T, b *testbed, tools harness.Tools) {
	a := &another{
		b: b, ctx: namespaces.WithNamespace(t.Context(), b.Namespace),
		Thinsnap: harnesstest.StartThinsnapWith(t, tools, "differ-xfs", harness.Options{
			Filesystem: "xfs", BaseSize: "300MiB", VerifyDiffs: true, DiffContainerd: b.Address(), NoSpares: true,
		}),
	}
	sn := a.Snapshotter(t)
	made, err := sn.Prepare(a.ctx, "other/1/new", "")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(a.ctx, made, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "removed"), []byte("content"), 0o600)
	}))
	require.NoError(t, sn.Commit(a.ctx, "other/2/layer", "other/1/new"))
	a.lower, err = sn.View(a.ctx, "other/3/view", "other/2/layer")
	require.NoError(t, err)
	box, err := sn.Prepare(a.ctx, "other/4/box", "other/2/layer")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(a.ctx, box, func(dir string) error {
		require.NoError(t, os.Remove(filepath.Join(dir, "removed")))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "added"), []byte("content"), 0o600))
		a.upper, err = sn.Mounts(a.ctx, "other/4/box")
		require.NoError(t, err)
		layer, err := a.compare()
		require.NoError(t, err)
		a.requireLayer(t, layer)
		return nil
	}))
	differ := a.Info(t).Differ
	require.EqualValues(t, 1, differ.Walked)
	require.Zero(t, differ.Left+differ.Failed+differ.Mismatched, "%+v", differ)

	layer, err := a.compareDuringAStop(t, false)
	require.NoError(t, err)
	a.requireLayer(t, layer)
	if dmtest.Thorough() {
		_, err := a.compareDuringAStop(t, true)
		require.Error(t, err)
	}
	sn = a.Snapshotter(t)
	for _, key := range []string{"other/4/box", "other/3/view", "other/2/layer"} {
		require.NoError(t, sn.Remove(a.ctx, key))
	}
	a.Stop(t)
}

// compare calls the differ without a containerd in between.
func (a *another) compare() (ocispec.Descriptor, error) {
	conn, _, err := a.Dial()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer conn.Close()
	comparer, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer)
	if !ok {
		return ocispec.Descriptor{}, os.ErrInvalid
	}
	return comparer.Compare(a.ctx, a.lower, a.upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
}

// requireLayer requires that containerd has the layer, and removes it with its lease.
func (a *another) requireLayer(t *testing.T, layer ocispec.Descriptor) {
	t.Helper()
	blob, err := content.ReadBlob(a.ctx, contentproxy.NewContentStore(a.b.Connect(t)), layer)
	require.NoError(t, err)
	require.Contains(t, string(blob), "added")
	require.Contains(t, string(blob), ".wh.removed")
	for _, lease := range a.b.leases(t) {
		a.b.Ctr(t, "leases", "rm", "--sync", lease)
	}
}

// compareDuringAStop stops thinsnap while its differ waits for containerd, and starts it again. containerd continues as
// soon as thinsnap is stopping or, if isStuck, only when thinsnap has ended. Nothing is left of the comparison.
func (a *another) compareDuringAStop(t *testing.T, isStuck bool) (layer ocispec.Descriptor, err error) {
	t.Helper()
	pid := a.b.PID()
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	defer func() { require.NoError(t, unix.Kill(pid, unix.SIGCONT)) }()
	compared := make(chan struct{})
	go func() {
		defer close(compared)
		layer, err = a.compare()
	}()
	require.NoError(t, a.Await(func() bool { return a.Info(t).Differ.Running == 1 }))
	isStopping := func() int { return strings.Count(a.Log(), "stopping: waiting") }
	before, started, stopped := isStopping(), time.Now(), make(chan error, 1)
	go func() { stopped <- a.Thinsnap.Thinsnap.Stop() }()
	require.NoError(t, a.Await(func() bool { return isStopping() > before }))
	if !isStuck {
		require.NoError(t, unix.Kill(pid, unix.SIGCONT))
	}
	require.NoError(t, <-stopped)
	t.Logf("%5.1f s  stop", time.Since(started).Seconds())
	require.NoError(t, unix.Kill(pid, unix.SIGCONT))
	<-compared
	a.Start(t)
	require.NoError(t, a.Await(func() bool {
		devices := a.Info(t).Devices
		return devices.Frozen == 0 && devices.Kept == 0
	}))
	a.Run(t, "check")
	out, listErr := a.b.TryCtr("content", "active")
	require.NoError(t, listErr)
	require.Zero(t, strings.Count(out, "\n"), out)
	return layer, err
}
