package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// testSnapshotCommands manages snapshots by hand, with `ctr snapshots`.
func testSnapshotCommands(t *testing.T, b *testbed) {
	snapshots := func(args ...string) string {
		return b.Ctr(t, append([]string{"snapshots", "--snapshotter", b.snapshotter}, args...)...)
	}
	b.Pull(t, b.snapshotter, b.images.Busybox)
	top := b.TopLayer(t, b.snapshotter)

	require.Contains(t, snapshots("tree"), top)
	require.Equal(t, "Committed", info(t, snapshots("info", top)).Kind)
	require.Positive(t, size(t, snapshots("usage", "-b", top)))

	b.CollectGarbage(t)
	snapshots("view", "by-hand-view", top)
	mounted(t, snapshots, "by-hand-view", func(dir string) {
		require.FileExists(t, filepath.Join(dir, "data/numbers"))
		require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600), unix.EROFS)
	})
	snapshots("rm", "by-hand-view")

	snapshots("prepare", "by-hand", top)
	require.Equal(t, "Active", info(t, snapshots("info", "by-hand")).Kind)
	mounted(t, snapshots, "by-hand", func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), make([]byte, 1<<20), 0o600))
		require.NoError(t, os.Remove(filepath.Join(dir, "data/numbers")))
	})
	snapshots("commit", "by-hand-layer", "by-hand")
	committed := info(t, snapshots("info", "by-hand-layer"))
	require.Equal(t, "Committed", committed.Kind)
	require.Equal(t, top, committed.Parent)
	require.GreaterOrEqual(t, size(t, snapshots("usage", "-b", "by-hand-layer")), int64(1<<20))

	snapshots("label", "by-hand-layer", "colour=green")
	require.Equal(t, "green", info(t, snapshots("info", "by-hand-layer")).Labels["colour"])

	b.CollectGarbage(t)
	snapshots("view", "by-hand-view", "by-hand-layer")
	mounted(t, snapshots, "by-hand-view", func(dir string) {
		require.FileExists(t, filepath.Join(dir, "new"))
		require.NoFileExists(t, filepath.Join(dir, "data/numbers"))
	})
	_, err := b.TryCtr("snapshots", "--snapshotter", b.snapshotter, "rm", "by-hand-layer")
	require.ErrorContains(t, err, "cannot remove snapshot with child")
	snapshots("rm", "by-hand-view")
	snapshots("rm", "by-hand-layer")
	b.RemoveImage(t, b.images.Busybox)
}

// mounted mounts a snapshot with the command that ctr prints for it.
func mounted(t *testing.T, snapshots func(...string) string, key string, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("sh", "-c", snapshots("mounts", dir, key)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	use(dir)
}

// snapshotInfo is the output of `ctr snapshots info`.
type snapshotInfo struct {
	Kind   string
	Parent string
	Labels map[string]string
}

func info(t *testing.T, printed string) snapshotInfo {
	t.Helper()
	var parsed snapshotInfo
	require.NoError(t, json.Unmarshal([]byte(printed), &parsed))
	return parsed
}

// size parses the output of `ctr snapshots usage -b KEY`: a heading, then key, bytes and inodes.
func size(t *testing.T, printed string) int64 {
	t.Helper()
	lines := strings.Split(printed, "\n")
	require.Len(t, lines, 2)
	fields := strings.Fields(lines[1])
	require.Len(t, fields, 3)
	bytes, err := strconv.ParseInt(fields[1], 10, 64)
	require.NoError(t, err)
	return bytes
}
