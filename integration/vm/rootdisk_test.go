package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRootDisk(t *testing.T) {
	requireGuests(t)
	files := t.TempDir()
	bin := filepath.Join(files, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	busybox, err := os.ReadFile("/bin/busybox")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(bin, "busybox"), busybox, 0o700))
	require.NoError(t, os.Symlink("busybox", filepath.Join(bin, "sh")))
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64<<20))
	out, err := exec.Command("/sbin/mkfs.ext4", "-q", "-d", files, disk).CombinedOutput()
	require.NoError(t, err, string(out))

	boot := func() *RootDisk {
		m, err := BootRootDisk(t.Context(), disk)
		require.NoError(t, err)
		t.Cleanup(m.Kill)
		return m
	}
	m := boot()
	printed, err := m.Run(t.Context(), "echo one; echo two >&2; echo kept > /file; /bin/busybox sync")
	require.NoError(t, err)
	require.Equal(t, "one\ntwo", printed)
	printed, err = m.Run(t.Context(), "echo why; false")
	require.ErrorContains(t, err, "status 1: why")
	require.Equal(t, "why", printed)
	_, err = m.Run(t.Context(), "one\ntwo")
	require.ErrorContains(t, err, "more than one line")
	m.Kill()
	_, err = m.Run(t.Context(), "true")
	require.ErrorIs(t, err, ErrGuestGone)
	m.Kill()

	printed, err = boot().Run(t.Context(), "/bin/busybox cat /file")
	require.NoError(t, err)
	require.Equal(t, "kept", printed)
}

func TestRootDiskWithoutFilesystem(t *testing.T) {
	requireGuests(t)
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	_, err := BootRootDisk(t.Context(), disk)
	require.ErrorIs(t, err, ErrGuestGone)
	require.ErrorContains(t, err, "cannot mount the disk")
}
