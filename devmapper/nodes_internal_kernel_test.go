package devmapper

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestKernelNodesWithoutDevtmpfs: on a host without devtmpfs and udev, all nodes are created. The
// test's own directory replaces /dev.
func TestKernelNodesWithoutDevtmpfs(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	n := nodes{dev: t.TempDir(), sys: "/sys"}
	d := Device{Name: "name", Major: 253, Minor: 4000}

	require.NoError(t, n.ensure(d))

	rdev, err := blockRdev(n.path("name"))
	require.NoError(t, err)
	require.Equal(t, unix.Mkdev(253, 4000), rdev)

	// The node belongs to another device by mistake: it is replaced.
	node := filepath.Join(n.dev, "dm-4000")
	require.NoError(t, os.Remove(node))
	require.NoError(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 9))))
	require.NoError(t, n.ensure(d))
	rdev, err = blockRdev(n.path("name"))
	require.NoError(t, err)
	require.Equal(t, unix.Mkdev(253, 4000), rdev)

	require.NoError(t, n.remove("name"))
	_, err = os.Lstat(n.path("name"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestKernelControlNodeIsMade(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dev := t.TempDir()

	for range 2 {
		f, err := openControl(dev, "/proc/misc")
		require.NoError(t, err)
		c := &Control{file: f}
		_, err = c.Version()
		require.NoError(t, err)
		require.NoError(t, c.Close())
		_, err = c.Version()
		require.ErrorIs(t, err, os.ErrClosed)
	}
	require.FileExists(t, filepath.Join(dev, "mapper/control"))
}
