package snapshotter_test

import (
	"testing"

	"github.com/containerd/continuity/fs/fstest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// filesystemBytes is the size of the file system that is mounted at dir, without its inode tables.
func filesystemBytes(t *testing.T, dir string) uint64 {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	return fs.Blocks * uint64(fs.Bsize)
}

// A larger base_size reaches the file systems of new containers of old images, with and without a
// spare.
func TestBaseSizeRaisedOnTheKernel(t *testing.T) {
	for name, config := range filesystems {
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
