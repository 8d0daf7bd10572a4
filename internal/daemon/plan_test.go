package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/config"
)

// TestPlanWithoutRoom: a dry run fails with the same reason as a start.
func TestPlanWithoutRoom(t *testing.T) {
	c := config.Default()
	c.Root = "/proc/thinsnap" // a file system without free space
	c.Address, c.AdminAddress = filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	lines, err := PlanPool(t.Context(), c)
	require.Empty(t, lines)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorContains(t, err, "the file system of /proc has 0 bytes free, and a pool needs")
}

// TestPlanTellsAllThatIsWrong: a dry run returns all reasons for which a start would fail, and
// changes nothing.
func TestPlanTellsAllThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.Root = filepath.Join(dir, "root")
	c.Address, c.AdminAddress = filepath.Join(dir, "file"), filepath.Join(dir, "open", "admin.sock")
	require.NoError(t, os.WriteFile(c.Address, nil, 0o600))
	for _, path := range []string{c.Root, filepath.Dir(c.AdminAddress)} {
		require.NoError(t, os.Mkdir(path, 0o700))
		require.NoError(t, os.Chmod(path, 0o777))
	}
	lines, err := PlanPool(program.WithDirectories(t.Context(), t.TempDir()), c)
	require.NotEmpty(t, lines, "the plan")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	for _, want := range []string{
		"the root directory " + c.Root + " has mode 0777", "mkfs.ext4: program not found",
		"listen on " + c.Address + ": the path exists and is not a socket", filepath.Dir(c.AdminAddress) + " has mode 0777",
	} {
		require.ErrorContains(t, err, want)
	}
	info, err := os.Stat(c.Root)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o777), info.Mode().Perm(), "unchanged")
	entries, err := os.ReadDir(c.Root)
	require.NoError(t, err)
	require.Empty(t, entries)
}
