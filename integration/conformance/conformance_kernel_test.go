// Package conformance runs containerd's own tests of snapshotters against the daemon, over gRPC, and counts the costs
// of the daemon's operations.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// filesystems maps the tested file systems to the size of a base volume.
var filesystems = map[string]string{"ext4": "64MiB", "xfs": "300MiB"}

func findTools(t *testing.T) harness.Tools {
	t.Helper()
	dmtest.RequireKernel(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	return tools
}

func TestSuite(t *testing.T) {
	tools := findTools(t)
	dmtest.NoLeaks(t)
	var n atomic.Int32
	for _, filesystem := range dmtest.Filesystems() {
		t.Run(filesystem, func(t *testing.T) {
			// Comparing trees of 128 layers takes nearly all of the time.
			t.Parallel()
			testsuite.SnapshotterSuite(t, filesystem, func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
				daemon := harnesstest.StartThinsnapWith(t, tools, fmt.Sprintf("suite-%d", n.Add(1)),
					harness.Options{Filesystem: filesystem, BaseSize: filesystems[filesystem]})
				sn := daemon.Snapshotter(t)
				return sn, func() error {
					daemon.Stop(t)
					return errors.Join(sn.Close(), daemon.Destroy())
				}, nil
			})
		})
	}
}

func client(t *testing.T, filesystem string) (context.Context, *harnesstest.Thinsnap, snapshots.Snapshotter) {
	t.Helper()
	return clientWith(t, harness.Options{Filesystem: filesystem, BaseSize: filesystems[filesystem]})
}

func clientWith(t *testing.T, o harness.Options) (context.Context, *harnesstest.Thinsnap, snapshots.Snapshotter) {
	t.Helper()
	daemon := harnesstest.StartThinsnapWith(t, findTools(t), "conformance-"+o.Filesystem, o)
	return namespaces.WithNamespace(t.Context(), "test"), daemon, daemon.Snapshotter(t)
}

// TestUsage requires the usage that containerd's tests of its devmapper snapshotter require beyond the suite.
func TestUsage(t *testing.T) {
	for filesystem := range filesystems {
		t.Run(filesystem, func(t *testing.T) {
			ctx, _, sn := client(t, filesystem)
			_, err := sn.Prepare(ctx, "prepare-1", "")
			require.NoError(t, err)
			empty, err := sn.Usage(ctx, "prepare-1")
			require.NoError(t, err)
			require.Positive(t, empty.Size, "a new file system has blocks of its own")
			require.NoError(t, sn.Commit(ctx, "layer-1", "prepare-1"))
			layer, err := sn.Usage(ctx, "layer-1")
			require.NoError(t, err)
			require.Equal(t, empty.Size, layer.Size)

			const size = 1 << 20
			mounts, err := sn.Prepare(ctx, "prepare-2", "layer-1")
			require.NoError(t, err)
			require.NoError(t, mount.WithTempMount(ctx, mounts, fstest.CreateRandomFile("/a", 12345679, size, 0o777).Apply))
			require.NoError(t, sn.Commit(ctx, "layer-2", "prepare-2"))
			usage, err := sn.Usage(ctx, "layer-2")
			require.NoError(t, err)
			require.GreaterOrEqual(t, usage.Size, int64(size))
			require.EqualValues(t, 1, usage.Inodes)
		})
	}
}

// TestMultipleMounts mounts several snapshots with the same file-system UUID at a time, and commits one while it is
// mounted.
func TestMultipleMounts(t *testing.T) {
	for filesystem := range filesystems {
		t.Run(filesystem, func(t *testing.T) {
			ctx, _, sn := client(t, filesystem)
			layer := fstest.Apply(fstest.CreateRandomFile("/a", 12345679, 1<<20, 0o777))
			mounts, err := sn.Prepare(ctx, "prepare-1", "")
			require.NoError(t, err)
			first, second := t.TempDir(), t.TempDir()
			require.NoError(t, mount.All(mounts, first))
			defer func() { require.NoError(t, mount.UnmountAll(first, 0)) }()
			require.NoError(t, layer.Apply(first))
			require.NoError(t, sn.Commit(ctx, "layer-1", "prepare-1"))

			mounts, err = sn.Prepare(ctx, "prepare-2", "layer-1")
			require.NoError(t, err)
			require.NoError(t, mount.All(mounts, second))
			defer func() { require.NoError(t, mount.UnmountAll(second, 0)) }()
			require.NoError(t, fstest.CheckDirectoryEqual(first, second))
		})
	}
}
