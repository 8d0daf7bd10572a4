package dmtest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestNoLeaksFindsDevicesAndMounts makes each kind of leak with the system's tools.
func TestNoLeaksFindsDevicesAndMounts(t *testing.T) {
	RequireKernel(t)
	NoLeaks(t)
	sh := func(command string) string {
		t.Helper()
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		require.NoError(t, err, string(out))
		return strings.TrimSpace(string(out))
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	r := &recorder{TB: t}
	noLeaks(r, 0)

	loop := sh("truncate -s 16M " + image + " && losetup --find --show " + image)
	t.Cleanup(func() { sh("losetup --detach " + loop) })
	sh("dmsetup create dmtest-leak --table '0 32768 linear " + loop + " 0'")
	t.Cleanup(func() { sh("dmsetup remove dmtest-leak") })
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })

	r.cleanup()
	require.Len(t, r.errors, 1)
	require.Contains(t, r.errors[0], ": dmtest-leak")
	require.Contains(t, r.errors[0], "loop device "+filepath.Base(loop)+": "+image)
	require.Contains(t, r.errors[0], "mount of tmpfs (tmpfs) on "+dir)
}
