package snapshotter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// filesystemBytes is the size of the file system mounted at dir, without its inode tables.
func filesystemBytes(t *testing.T, dir string) uint64 {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	return fs.Blocks * uint64(fs.Bsize)
}

// A larger base_size also applies to new containers of old images, with and without spares.
func TestBaseSizeRaisedOnTheKernel(t *testing.T) {
	for _, name := range dmtest.Filesystems() {
		config := filesystems[name]
		for spares, most := range map[string]int{"": 0, " with spares": 4} {
			t.Run(name+spares, func(t *testing.T) {
				config.Spares = most
				ctx, h := newTestHost(t, config)
				old := config.BaseBytes
				require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateFile("/file", []byte("content"), 0o644)))
				config.BaseBytes = 2 * old
				require.NoError(t, h.reboot(ctx, config))
				require.NoError(t, prepareAndCommit(t, h, "upper", "layer"))
				for _, key := range []string{"one", "two", "three"} {
					mounts, err := h.Prepare(ctx, key, "upper")
					require.NoError(t, err)
					mounted(t, mounts, func(dir string) {
						require.Greater(t, filesystemBytes(t, dir), old)
						require.Equal(t, "content", read(t, dir, "file"))
					})
				}
				mounts, err := h.Prepare(ctx, unpackKey, "layer")
				require.NoError(t, err)
				mounted(t, mounts, func(dir string) { require.LessOrEqual(t, filesystemBytes(t, dir), old) })
			})
		}
	}
}

// The kernel writes no inode tables of a grown file system, because unmapped blocks of the pool read as
// zeroes. init_itable=0 after thinsnap's option makes it write them at once, and has no effect before
// that option.
func TestIdleGrownVolumeIsNotWritten(t *testing.T) {
	config := filesystems["ext4"]
	config.MaxBytes = 2 << 30
	ctx, h := newTestHost(t, config)
	require.NoError(t, prepareAndCommit(t, h, "layer", ""))
	grown := func(key string) (mounts []mount.Mount, mapped func() uint64) {
		mounts, err := h.Prepare(ctx, key, "layer", labels(snapshotter.LabelSize, "2GiB"))
		require.NoError(t, err)
		id := h.volume(t, key)
		return mounts, func() uint64 {
			require.NoError(t, h.pool.Flush(ctx, id))
			bytes, err := h.pool.Mapped(ctx, id)
			require.NoError(t, err)
			return bytes
		}
	}
	ours, mapped := grown("ours")
	ours[0].Options = append([]string{"init_itable=0"}, ours[0].Options...)
	kernels, mappedByKernel := grown("the kernel's")
	kernels[0].Options = append(kernels[0].Options, "init_itable=0")
	mounted(t, ours, func(string) {
		before := mapped()
		require.Less(t, before, uint64(16<<20), "the growth did not write them either")
		mounted(t, kernels, func(string) {
			const tables = 24 << 20 // 16 groups of 2 MiB, less the existing ones
			require.Eventually(t, func() bool { return mappedByKernel() > before+tables && !lazyInitRuns(t) },
				2*time.Minute, 50*time.Millisecond, "the kernel has written the inode tables")
		})
		require.Equal(t, before, mapped())
	})
}

// lazyInitRuns reports whether the kernel writes inode tables of any ext4: one thread writes for all.
func lazyInitRuns(t *testing.T) bool {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	return slices.ContainsFunc(names, func(file string) bool {
		name, err := os.ReadFile(file)
		return err == nil && string(name) == "ext4lazyinit\n"
	})
}

func (h *host) volume(t *testing.T, key string) thin.ID {
	t.Helper()
	var rec metadata.Snapshot
	require.NoError(t, h.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	}))
	return thin.ID(rec.VolumeID)
}

// An active snapshot's inodes are counted while it is mounted, unmounted, inactive and committed. Small
// files use up the blocks before the inodes.
func TestInodes(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			config.BaseBytes = 1 << 30
			ctx, h := newTestHost(t, config)
			require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateFile("/file", nil, 0o644)))
			inodes := func(key string) int64 {
				usage, err := h.Usage(ctx, key)
				require.NoError(t, err)
				return usage.Inodes
			}
			mounts, err := h.Prepare(ctx, "container", "layer")
			require.NoError(t, err)
			require.Zero(t, inodes("container"))
			const files = 1000
			mounted(t, mounts, func(dir string) {
				for i := range files {
					write(t, dir, fmt.Sprint(i), "")
				}
				require.EqualValues(t, files, inodes("container"))
				require.NoError(t, os.Remove(filepath.Join(dir, "0")))
				if name == "ext4" { // xfs frees inodes in the background
					require.EqualValues(t, files-1, inodes("container"))
				}
				var fs unix.Statfs_t
				require.NoError(t, unix.Statfs(dir, &fs))
				require.GreaterOrEqual(t, fs.Ffree, fs.Bavail*uint64(fs.Bsize)/4096)
			})
			require.EqualValues(t, files-1, inodes("container"))
			require.NoError(t, h.reboot(ctx, config))
			require.EqualValues(t, files-1, inodes("container"))
			require.NoError(t, h.Commit(ctx, "upper", "container"))
			require.EqualValues(t, files-1, inodes("upper"))
		})
	}
}

// The ratio is configurable.
func TestInodeRatio(t *testing.T) {
	config := filesystems["ext4"]
	config.MkfsOptions = []string{"-N", "4096"}
	ctx, h := newTestHost(t, config)
	mounts, err := h.Prepare(ctx, "container", "")
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) {
		var fs unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &fs))
		require.EqualValues(t, 4096, fs.Files)
	})
}
