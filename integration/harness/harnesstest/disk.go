package harnesstest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// diskSize is the size of a test's file system, in bytes. Its file is sparse.
const diskSize = 8 << 30

// NewDisk mounts a new ext4 file system and returns its directory. containerd's data needs one: the temporary directory
// may be a tmpfs, which has no user xattrs before Linux 6.6, or an overlay, which cannot be stacked.
func NewDisk(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, diskSize))
	return FormatDisk(t, file)
}

// FormatDisk is NewDisk on a device or file that reads as zeroes.
func FormatDisk(t testing.TB, file string) string {
	t.Helper()
	mountpoint := t.TempDir()
	_, err := harness.Run(nil, "mkfs.ext4", "-q", "-F", "-E", "nodiscard,assume_storage_prezeroed=1", file)
	if err != nil { // e2fsprogs before 1.47
		_, err = harness.Run(nil, "mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1", file)
	}
	require.NoError(t, err)
	_, err = harness.Run(nil, "mount", file, mountpoint)
	require.NoError(t, err)
	t.Cleanup(func() {
		UnmountBelow(t, mountpoint)
		require.NoError(t, unix.Unmount(mountpoint, 0))
	})
	return mountpoint
}
