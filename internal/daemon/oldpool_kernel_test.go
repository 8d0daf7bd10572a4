package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
)

// TestOldPoolOnASmallDisk opens an earlier version's default pool, with a sparse metadata file of 2
// GiB, on a smaller disk. Other users keep the disk's free space.
func TestOldPoolOnASmallDisk(t *testing.T) {
	for _, typ := range []string{config.Ext4, config.XFS} {
		t.Run(typ, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			disk := faulty.New(t, smallDisk)
			var dir string
			if typ == config.XFS {
				dir = disk.MountXFS(t)
			} else {
				dir = disk.Mount(t, true)
			}
			c := config.Default()
			c.Root, c.Pool.Name = filepath.Join(dir, "root"), "old-small"
			c.Filesystem.BaseSize = 1 << 30
			c.Pool.SparesMax = 0
			makeOldPool(t, c)
			d, err := Open(t.Context(), c)
			require.NoError(t, err)
			require.NoError(t, d.Close())
			control, err := devmapper.Open()
			require.NoError(t, err)
			require.NoError(t, d.stored.TakeOut(t.Context(), control))
			require.NoError(t, control.Close())
			require.NoError(t, os.Truncate(filepath.Join(c.Root, "pool/metadata"), 2<<30))
			free := func() uint64 {
				var fs unix.Statfs_t
				require.NoError(t, unix.Statfs(dir, &fs))
				return fs.Bavail * uint64(fs.Bsize)
			}
			before := free()
			d, err = Open(t.Context(), c)
			require.NoError(t, err)
			t.Cleanup(func() { destroy(t, c) })
			defer func() { require.NoError(t, d.Close()) }()
			_, err = d.pool.KeepAllocated(t.Context())
			require.ErrorIs(t, err, unix.ENOSPC)
			mounts, err := d.snapshotter.Prepare(t.Context(), "box", "")
			require.NoError(t, err)
			require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(at string) error {
				return os.WriteFile(filepath.Join(at, "file"), make([]byte, 1<<20), 0o600)
			}))
			require.Greater(t, free(), before-(64<<20))
		})
	}
}
