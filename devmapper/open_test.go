package devmapper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOpenWithoutDeviceMapper(t *testing.T) {
	dir := t.TempDir()
	misc := filepath.Join(dir, "misc")
	require.NoError(t, os.WriteFile(misc, []byte("237 loop-control\n130 watchdog\n"), 0o600))

	_, err := openControl(dir, misc)

	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "modprobe dm-thin-pool")
	require.NoDirExists(t, filepath.Join(dir, "mapper"), "nothing is created for a kernel without device-mapper")
}

func TestControlMinor(t *testing.T) {
	misc := filepath.Join(t.TempDir(), "misc")
	require.NoError(t, os.WriteFile(misc, []byte("237 loop-control\n236 device-mapper\n  1 psaux\n"), 0o600))

	minor, err := controlMinor(misc)

	require.NoError(t, err)
	require.Equal(t, uint32(236), minor)
}

// TestNamesAreChecked needs no kernel: names that the kernel would truncate are not sent.
func TestNamesAreChecked(t *testing.T) {
	c := &Control{}
	long := strings.Repeat("x", maxNameLen+1)

	_, err := c.Create(long, "")
	require.ErrorIs(t, err, ErrTooLong)
	_, err = c.Create("x", strings.Repeat("x", maxUUIDLen+1))
	require.ErrorIs(t, err, ErrTooLong)
	for _, name := range []string{"", "a\x00b"} {
		_, err = c.Create(name, "")
		require.ErrorIs(t, err, unix.EINVAL)
	}
	_, err = c.Message("x", 0, "a\x00b")
	require.ErrorIs(t, err, unix.EINVAL)
	require.Zero(t, c.Calls())
	require.Empty(t, c.CallsByCommand())
}
