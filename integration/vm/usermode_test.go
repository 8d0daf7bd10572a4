package vm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUserMode needs the kernel that make test-all installs.
func TestUserMode(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests: -short")
	}
	cache, err := CacheDir()
	require.NoError(t, err)
	if _, err := findUserMode(cache); err != nil {
		t.Skip(err)
	}
	share := t.TempDir()
	disk := filepath.Join(t.TempDir(), "disk")
	config := Config{Accel: userMode, Shares: []string{share}, Disks: []Disk{{Path: disk, Size: 64 << 20}}}
	m := boot(t, config)
	require.Equal(t, "uml", m.Accel())
	require.Contains(t, shell(t, m, "cat /proc/cpuinfo"), "User Mode Linux")
	require.Contains(t, shell(t, m, "dmsetup targets"), "thin-pool")
	require.Equal(t, "67108864", shell(t, m, "blockdev --getsize64 $THINSNAP_DISK0"))
	shell(t, m, "modprobe -a dm-flakey dm-log-writes")
	shell(t, m, "ip link show lo | grep -q LOWER_UP")

	var got, want bytes.Buffer
	require.NoError(t, m.Run(t.Context(), Command{Args: []string{"seq", "100000"}, Stdout: &got}))
	for i := range 100000 {
		fmt.Fprintln(&want, i+1)
	}
	require.Equal(t, sha256.Sum256(want.Bytes()), sha256.Sum256(got.Bytes()))

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("host"), 0o600))
	require.Equal(t, "guest", shell(t, m, "echo guest > "+file+"; cat "+file))
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "host", string(content), "the host's files cannot be changed")

	shell(t, m, "echo kept | dd of=$THINSNAP_DISK0 conv=fsync")
	m.Kill()
	require.ErrorIs(t, m.Run(t.Context(), Command{Args: []string{"true"}}), ErrGuestGone)

	m = boot(t, config)
	require.Equal(t, "kept", shell(t, m, "head -c 4 $THINSNAP_DISK0"))
	shell(t, m, "echo guest > "+share+"/file")
	require.NoError(t, m.Stop(t.Context()))
	content, err = os.ReadFile(filepath.Join(share, "file"))
	require.NoError(t, err)
	require.Equal(t, "guest", strings.TrimSpace(string(content)))
}

func TestUserModeHasLimits(t *testing.T) {
	for name, config := range map[string]Config{
		"processors": {CPUs: 2},
		"udev":       {Udev: true},
		"system":     {Root: "root.img"},
	} {
		t.Run(name, func(t *testing.T) {
			config.Accel, config.Cache = userMode, t.TempDir()
			_, err := Boot(t.Context(), config)
			require.ErrorContains(t, err, "has one processor, no udev")
		})
	}
	_, err := Boot(t.Context(), Config{Accel: userMode, Cache: t.TempDir()})
	require.ErrorContains(t, err, "run integration/setup.sh uml first")
}
