package snapshotter_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Several snapshots of one base volume, all with its UUID, are mounted at a time. One of them is committed
// while it is mounted.
func TestCommitWhileMounted(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			mounts, err := h.Prepare(ctx, "one", "")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				write(t, dir, "file", "at the commit")
				require.NoError(t, h.Commit(ctx, "layer", "one"))
				write(t, dir, "file", "after the commit")

				child, err := h.Prepare(ctx, "child", "layer")
				require.NoError(t, err)
				mounted(t, child, func(dir string) {
					require.Equal(t, "at the commit", read(t, dir, "file"))
					write(t, dir, "file", "in the child")
					view, err := h.View(ctx, "view", "layer")
					require.NoError(t, err)
					mounted(t, view, func(dir string) {
						require.Equal(t, "at the commit", read(t, dir, "file"))
						require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0), unix.EROFS)
					})
				})
			})
			require.NoError(t, h.Cleanup(ctx))
			require.NoError(t, h.store.View(ctx, func(tx *metadata.Tx) error {
				n, err := tx.TrashCount()
				require.Zero(t, n, "the volume is deleted after its use")
				return err
			}))
		})
	}
}

// A layer that was unpacked without a journal behaves like any other.
func TestUnpackedLayer(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			parent := ""
			for _, layer := range []string{"one", "two"} {
				mounts, err := h.Prepare(ctx, unpackKey, parent)
				require.NoError(t, err)
				mounted(t, mounts, func(dir string) { write(t, dir, layer, "content of "+layer) })
				require.NoError(t, h.Commit(ctx, layer, unpackKey))
				parent = layer
			}
			require.NoError(t, h.reboot(ctx, config))
			mounts, err := h.Prepare(ctx, "container", "two")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				require.Equal(t, "content of one", read(t, dir, "one"))
				require.Equal(t, "content of two", read(t, dir, "two"))
				write(t, dir, "two", "changed")
			})
			view, err := h.View(ctx, "view", "two")
			require.NoError(t, err)
			mounted(t, view, func(dir string) { require.Equal(t, "content of two", read(t, dir, "two")) })
		})
	}
}

// A mounted snapshot can also be mounted read-only, as `nerdctl commit` does. That mount outlives the
// container's own.
func TestMountsOfWhatIsMounted(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			mounts, err := h.Prepare(ctx, "container", "")
			require.NoError(t, err)
			var current []mount.Mount
			mounted(t, mounts, func(dir string) {
				write(t, dir, "file", "content")
				current, err = h.Mounts(ctx, "container")
				require.NoError(t, err)
				require.NoError(t, mount.WithReadonlyTempMount(ctx, current, func(dir string) error {
					require.Equal(t, "content", read(t, dir, "file"))
					require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0), unix.EROFS)
					return nil
				}))
			})
			require.NoError(t, mount.WithReadonlyTempMount(ctx, current, func(dir string) error {
				require.Equal(t, "content", read(t, dir, "file"))
				return nil
			}))
			require.NoError(t, h.Remove(ctx, "container"))
			require.NoError(t, h.Cleanup(ctx))
			require.NoDirExists(t, current[0].Source)
		})
	}
}

func TestSizeReachesTheFilesystem(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			const size = 1 << 30
			config.MaxBytes = size
			ctx, h := newTestHost(t, config)
			require.NoError(t, prepareAndCommit(t, h, "layer", ""))
			for _, parent := range []string{"", "layer"} {
				mounts, err := h.Prepare(ctx, "large "+parent, parent, labels(snapshotter.LabelSize, "1GiB"))
				require.NoError(t, err)
				mounted(t, mounts, func(dir string) {
					var fs unix.Statfs_t
					require.NoError(t, unix.Statfs(dir, &fs))
					require.Greater(t, fs.Blocks*uint64(fs.Bsize), uint64(size*8/10))
				})
			}
			require.NoError(t, h.Commit(ctx, "large", "large layer"))
			mounts, err := h.Prepare(ctx, "child of large", "large")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				var fs unix.Statfs_t
				require.NoError(t, unix.Statfs(dir, &fs))
				require.Greater(t, fs.Blocks*uint64(fs.Bsize), uint64(size*8/10))
			})
			_, err = h.Prepare(ctx, "too small", "large", labels(snapshotter.LabelSize, "512MiB"))
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		})
	}
}

func prepareAndCommit(t *testing.T, h *host, name, parent string, appliers ...fstest.Applier) error {
	t.Helper()
	mounts, err := h.Prepare(t.Context(), name+" active", parent)
	if err != nil {
		return err
	}
	if err := mount.WithTempMount(t.Context(), mounts, fstest.Apply(appliers...).Apply); err != nil {
		return err
	}
	return h.Commit(t.Context(), name, name+" active")
}

func TestIDMappedMounts(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			// containerd's code leaves the closing of the namespace process's file to Go's garbage collector.
			t.Cleanup(runtime.GC)
			require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateFile("/file", nil, 0o644), fstest.Chown("/file", 7, 8)))
			mounts, err := h.Prepare(ctx, "a", "layer", labels(
				snapshots.LabelSnapshotUIDMapping, "0:100000:65536", snapshots.LabelSnapshotGIDMapping, "0:200000:65536"))
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				var stat unix.Stat_t
				require.NoError(t, unix.Stat(filepath.Join(dir, "file"), &stat))
				require.EqualValues(t, 100007, stat.Uid)
				require.EqualValues(t, 200008, stat.Gid)
			})
		})
	}
}

func TestPoolComesBackAfterAReboot(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateFile("/file", []byte("content"), 0o644)))
	_, err := h.Prepare(ctx, "container", "layer")
	require.NoError(t, err)
	_, err = h.View(ctx, "view", "layer")
	require.NoError(t, err)
	require.NoError(t, h.Cleanup(ctx))

	require.NoError(t, h.reboot(ctx, config))
	require.NoError(t, h.Cleanup(ctx))
	active, err := h.pool.Active(ctx)
	require.NoError(t, err)
	require.Empty(t, active, "volumes are activated on demand")
	for _, key := range []string{"container", "view"} {
		mounts, err := h.Mounts(ctx, key)
		require.NoError(t, err)
		mounted(t, mounts, func(dir string) { require.Equal(t, "content", read(t, dir, "file")) })
	}
}

func TestRemovedSnapshotsGiveTheirSpaceBack(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	blocks := func() int64 {
		var stat unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(h.root, "pool", "data"), &stat))
		return stat.Blocks * 512
	}
	require.NoError(t, h.Cleanup(ctx))
	before := blocks()
	const size = 32 << 20
	require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateRandomFile("/file", 1, size, 0o644)))
	require.GreaterOrEqual(t, blocks()-before, int64(size))
	require.NoError(t, h.Remove(ctx, "layer"))
	require.NoError(t, h.Cleanup(ctx))
	require.Less(t, blocks()-before, int64(size/8), "the loop file shrinks back")
}

// The kernel would format metadata full of zeroes, and lose every volume silently.
func TestEmptiedPoolIsRefused(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateFile("/file", []byte("content"), 0o644)))
	require.NoError(t, h.Cleanup(ctx))
	require.NoError(t, h.Close())
	require.NoError(t, h.pool.Close(ctx))
	file := filepath.Join(h.root, "pool", "metadata")
	saved, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, make([]byte, len(saved)), 0o600))
	require.ErrorIs(t, h.open(ctx, config), errdefs.ErrFailedPrecondition)
	require.NoError(t, h.store.Close())
	now, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, make([]byte, len(saved)), now, "nothing was changed")

	require.NoError(t, os.WriteFile(file, saved, 0o600))
	require.NoError(t, h.open(ctx, config))
	mounts, err := h.View(ctx, "view", "layer")
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { require.Equal(t, "content", read(t, dir, "file")) })
}

func TestOtherPoolConfigurationIsRefused(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	require.NoError(t, h.Close())
	was := h.config
	h.config.Pool.BlockSize *= 2
	err := h.open(ctx, config)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "pool.block_size")
	require.NoError(t, h.store.Close())
	h.config = was
	require.NoError(t, h.open(ctx, config))
}
