package integration

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestDiffer commits a container while it writes, and compares each layer with that of the walking differ. It also
// tests callers without a lease, callers that give up, and pulls for other snapshotters while thinsnap is stopped.
func TestDiffer(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	images := harnesstest.StartRegistry(t, tools)
	d := harnesstest.StartThinsnapWith(t, tools, "differ", harness.Options{VerifyDiffs: true})
	proxy := d.Proxy()
	proxy.Differ = "thinsnap-diff"
	b := &testbed{
		Containerd:  harnesstest.StartContainerd(t, tools, tools.Releases[0], proxy),
		snapshotter: harness.ThinsnapName, thinsnap: d, images: images,
	}
	b.Pull(t, b.snapshotter, images.Busybox)
	t.Run("a container that writes", func(t *testing.T) { testDiffOfAWriter(t, b) })
	t.Run("without a lease", func(t *testing.T) { testDiffWithoutALease(t, b) })
	t.Run("given up", func(t *testing.T) { testDiffGivenUp(t, b) })
	t.Run("thinsnap diff", func(t *testing.T) { testDiffCommand(t, b) })
	t.Run("of another thinsnap", func(t *testing.T) { testDiffOfAnother(t, b, tools) })
	t.Run("without thinsnap", func(t *testing.T) { testDifferWithoutThinsnap(t, b) })
	b.RemoveImage(t, images.Busybox)
	b.requireEmpty(t)
}

// awaitNoCopy waits until no frozen copy is left.
func (b *testbed) awaitNoCopy(t *testing.T) admin.Differ {
	t.Helper()
	var info admin.Info
	require.Eventually(t, func() bool {
		info = b.thinsnap.Info(t)
		return info.Devices.Frozen == 0 && info.Differ.Running == 0
	}, time.Minute, 100*time.Millisecond)
	return info.Differ
}

func testDiffOfAWriter(t *testing.T, b *testbed) {
	nerdctl := func(args ...string) string { return b.Nerdctl(t, b.snapshotter, args...) }
	nerdctl("run", "--detach", "--name", "writer", "--net", "none", b.images.Busybox, "sh", "-c",
		"echo first > /first; sync; i=0; while true; do echo $i > /counter; sync; rm -f /d/*; mkdir -p /d; "+
			"echo $i > /d/$i; i=$((i+1)); done")
	require.NoError(t, b.Await(func() bool {
		out, err := b.TryNerdctl(b.snapshotter, "exec", "writer", "cat", "/counter")
		return err == nil && out != ""
	}))
	const commits = 2
	for i := range commits {
		nerdctl("commit", "--pause=false", "writer", fmt.Sprintf("written:%d", i))
	}
	differ := b.awaitNoCopy(t)
	require.EqualValues(t, commits, differ.Inodes)
	require.Zero(t, differ.Walked+differ.Left+differ.Failed+differ.Mismatched, "%+v", differ)
	nerdctl("rm", "--force", "writer")
	require.Equal(t, "first", nerdctl("run", "--rm", "--net", "none", "written:0", "cat", "/first"))
	for i := range commits {
		nerdctl("rmi", fmt.Sprintf("written:%d", i))
	}
}

func (b *testbed) leases(t *testing.T) []string {
	t.Helper()
	return strings.Fields(b.Ctr(t, "leases", "ls", "--quiet"))
}

// endLeases deletes all leases of containerd, and the content that only they hold.
func (b *testbed) endLeases(t *testing.T) {
	t.Helper()
	for _, lease := range b.leases(t) {
		b.Ctr(t, "leases", "rm", "--sync", lease)
	}
}

// prepare makes an active snapshot of the image, changes it, and returns the mounts of both, as containerd's differ
// gets them.
func (b *testbed) prepare(t *testing.T, key string, change func(dir string)) (lower, upper []mount.Mount) {
	t.Helper()
	snapshots := func(args ...string) string {
		return b.Ctr(t, append([]string{"snapshots", "--snapshotter", b.snapshotter}, args...)...)
	}
	top := b.TopLayer(t, b.snapshotter)
	snapshots("prepare", key, top)
	mounted(t, snapshots, key, change)
	sn := harness.Snapshotter(b.Connect(t))
	ctx := namespaces.WithNamespace(t.Context(), b.Namespace)
	lower, err := sn.View(ctx, key+"-view", top)
	require.NoError(t, err)
	upper, err = sn.Mounts(ctx, key)
	require.NoError(t, err)
	return lower, upper
}

// testDiffWithoutALease: a lease of thinsnap holds a layer, whether it is sent at once or in pieces.
func testDiffWithoutALease(t *testing.T, b *testbed) {
	for name, bytes := range map[string]int{"small": 3, "in pieces": 3 << 20} {
		t.Run(name, func(t *testing.T) { testDiffIsKept(t, b, bytes) })
	}
}

func testDiffIsKept(t *testing.T, b *testbed, bytes int) {
	b.endLeases(t)
	lower, upper := b.prepare(t, "changed", func(dir string) {
		random := make([]byte, bytes)
		_, _ = rand.Read(random)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), random, 0o600))
	})
	conn := b.Connect(t)
	ctx := namespaces.WithNamespace(t.Context(), b.Namespace)
	comparer, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer)
	require.True(t, ok)
	before := b.awaitNoCopy(t).Inodes
	layer, err := comparer.Compare(ctx, lower, upper, diff.WithLabels(map[string]string{"colour": "green"}))
	require.NoError(t, err)
	b.CollectGarbage(t)
	store := contentproxy.NewContentStore(conn)
	info, err := store.Info(ctx, layer.Digest)
	require.NoError(t, err, "thinsnap's lease keeps it")
	require.Equal(t, layer.Size, info.Size)
	require.Equal(t, "green", info.Labels["colour"])
	require.NotEmpty(t, info.Labels[labels.LabelUncompressed])
	blob, err := content.ReadBlob(ctx, store, layer)
	require.NoError(t, err)
	require.Len(t, blob, int(layer.Size))
	require.Contains(t, b.Ctr(t, "leases", "ls"), "containerd.io/gc.expire=")
	again, err := comparer.Compare(ctx, lower, upper)
	require.NoError(t, err, "the layer exists already")
	require.Equal(t, layer, again)
	require.Equal(t, before+2, b.awaitNoCopy(t).Inodes)
	require.NotEmpty(t, b.leases(t))
	require.LessOrEqual(t, len(b.leases(t)), 2, "one lease for all layers of an hour, which may have ended meanwhile")
	b.endLeases(t)
	_, err = store.Info(ctx, layer.Digest)
	require.Error(t, err, "it was not used")
	b.Ctr(t, "snapshots", "--snapshotter", b.snapshotter, "rm", "changed")
}

// testDiffGivenUp: a caller that gives up leaves no copy, no lease and nothing in the content store.
func testDiffGivenUp(t *testing.T, b *testbed) {
	lower, upper := b.prepare(t, "large", func(dir string) {
		random, err := os.ReadFile("/proc/self/exe")
		require.NoError(t, err)
		for i := range 4 {
			require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), random, 0o600))
		}
	})
	conn := b.Connect(t)
	before := b.awaitNoCopy(t)
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(t.Context(), b.Namespace))
	ended := make(chan error, 1)
	go func() {
		comparer, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer)
		if ok {
			_, err := comparer.Compare(ctx, lower, upper)
			ended <- err
		}
	}()
	require.NoError(t, b.Await(func() bool {
		return b.thinsnap.Info(t).Differ.Written > before.Written
	}))
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	after := b.awaitNoCopy(t)
	require.Equal(t, before.Cancelled+1, after.Cancelled)
	require.Equal(t, before.Inodes, after.Inodes)
	require.NoError(t, b.Await(func() bool {
		out, err := b.TryCtr("content", "active")
		return err == nil && strings.Count(out, "\n") == 0
	}))
	require.Empty(t, b.leases(t))
	b.Ctr(t, "snapshots", "--snapshotter", b.snapshotter, "rm", "large")
}

func testDiffCommand(t *testing.T, b *testbed) {
	b.CollectGarbage(t)
	b.prepare(t, "listed", func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "data/new"), nil, 0o600))
		require.NoError(t, os.Remove(filepath.Join(dir, "data/numbers")))
		require.NoError(t, os.Chmod(filepath.Join(dir, "bin/busybox"), 0o700))
	})
	key := ""
	for _, s := range strings.Fields(b.thinsnap.Run(t, "ls", "--json")) {
		if found := regexp.MustCompile(`"([^"]*/listed)"`).FindStringSubmatch(s); found != nil {
			key = found[1]
		}
	}
	require.Equal(t, "C /bin\nC /bin/busybox\nC /data\nA /data/new\nD /data/numbers", b.thinsnap.Run(t, "diff", key))
	_, err := b.thinsnap.TryRun(nil, "diff", "absent")
	require.ErrorContains(t, err, "not found")
	b.awaitNoCopy(t)
	b.Ctr(t, "snapshots", "--snapshotter", b.snapshotter, "rm", "listed")
	b.CollectGarbage(t)
}

// testDifferWithoutThinsnap: without thinsnap, containerd's transfer service pulls for other snapshotters, because its
// configuration names the walking differ. Clients that use the list of differs cannot pull.
func testDifferWithoutThinsnap(t *testing.T, b *testbed) {
	b.thinsnap.Stop(t)
	_, err := b.TryCtr("images", "pull", "--local", "--plain-http", "--snapshotter", "overlayfs", b.images.Busybox)
	require.ErrorContains(t, err, "thinsnap.sock")
	b.Pull(t, "overlayfs", b.images.Busybox)
	b.thinsnap.Start(t)
	b.AwaitSnapshotter(t, b.snapshotter)
}
