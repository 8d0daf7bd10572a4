package daemon

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// changeMetadata runs shell commands on /dev/METADATA, the metadata of a pool that is not loaded,
// in the directory of the pool's files.
func (h *handmade) changeMetadata(t *testing.T, commands ...string) {
	t.Helper()
	h.down(t)
	// The programs use direct I/O, which a file on tmpfs does not support before Linux 6.6.
	loop, err := blockdev.LoopAttach(filepath.Join(h.dir, "metadata"), blockdev.LoopOptions{})
	require.NoError(t, err)
	for _, command := range commands {
		cmd := exec.Command("sh", "-e", "-c", strings.ReplaceAll(command, "/dev/METADATA", loop.Path))
		cmd.Dir = h.dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
	}
	require.NoError(t, loop.Close())
	h.up(t)
}

// setTime sets the pool's time, as if that many snapshots had been created.
func (h *handmade) setTime(t *testing.T, time uint32) {
	t.Helper()
	h.changeMetadata(t, "thin_dump --output pool.xml /dev/METADATA",
		fmt.Sprintf(`sed --in-place --regexp-extended '/<superblock/ s/ time="[0-9]+"/ time="%d"/' pool.xml`, time),
		"thin_restore --input pool.xml --output /dev/METADATA")
}

// TestDocumentedReset shows without a kernel that the page has the commands of TestPoolWhoseTimeEnds.
func TestDocumentedReset(t *testing.T) {
	require.NotEmpty(t, documentedReset(t))
}

// documentedReset returns the commands of docs/pools.md that reset the times of a pool.
func documentedReset(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/pools.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## Time and device ids")
	require.True(t, found)
	var commands []string
	for _, line := range regexp.MustCompile(`(?m)^    .*$`).FindAllString(section, -1) {
		line = strings.TrimSpace(line)
		if len(commands) > 0 && strings.HasSuffix(commands[len(commands)-1], `\`) {
			commands[len(commands)-1] = strings.TrimSuffix(commands[len(commands)-1], `\`) + line
			continue
		}
		commands = append(commands, line)
	}
	return commands
}

// fillBox prepares a snapshot of a layer and writes its own content to it.
func fillBox(t *testing.T, d *Daemon, key, parent string) {
	t.Helper()
	mounts, err := d.snapshotter.Prepare(t.Context(), key, parent)
	require.NoError(t, err)
	writeBox(t, mounts, key)
}

func writeBox(t *testing.T, mounts []mount.Mount, content string) {
	t.Helper()
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "box"), bytes.Repeat([]byte(content), 4<<20/len(content)), 0o600)
	}))
}

func requireBox(t *testing.T, d *Daemon, key, content string) {
	t.Helper()
	mounts, err := d.snapshotter.Mounts(t.Context(), key)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		got, err := os.ReadFile(filepath.Join(dir, "box"))
		require.NoError(t, err)
		require.True(t, bytes.Equal(bytes.Repeat([]byte(content), 4<<20/len(content)), got), "%s is damaged", key)
		return nil
	}))
}

// TestPoolWhoseTimeEnds: a foreign pool's other users raise its time too. The kernel damages the
// pool beyond 24 bits. thinsnap stops before that, and the documented commands reset the times.
func TestPoolWhoseTimeEnds(t *testing.T) {
	h := newHandmade(t, "THEIRS")
	for _, tool := range []string{"thin_dump", "thin_restore", "thin_check"} {
		_, err := exec.LookPath(tool)
		dmtest.RequireInstalled(t, err)
	}
	c := inPool(t, "by-hand")
	c.Pool.SparesMax = 0
	ctx := t.Context()
	d, err := Open(ctx, c)
	require.NoError(t, err)
	layers(t, d, "one", "two")
	fillBox(t, d, "before", "two")
	const unpack = "default/7/extract-1-a sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	fillBox(t, d, unpack, "one")
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, "thinsnap")

	// The other users' snapshots.
	h.setTime(t, thinmeta.MaxTime-1)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	_, err = d.snapshotter.Prepare(ctx, "box", "two")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorContains(t, err, "the pool has counted 16777214 snapshots")
	requireBox(t, d, "before", "before")
	requireLayers(t, d, "two", "one", "two")
	info, err := d.Info(ctx)
	require.NoError(t, err)
	require.Zero(t, info.Devices.SnapshotsLeft)
	_, r := findings(t, d, false)
	require.Len(t, r.Findings, 1)
	require.Contains(t, r.Findings[0].Text, "16777214 snapshots")
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, "thinsnap")

	commands := documentedReset(t)
	require.Len(t, commands, 4)
	h.changeMetadata(t, commands...)
	h.changeMetadata(t, "thin_check /dev/METADATA")
	d, err = Open(ctx, c)
	require.NoError(t, err)
	_, r = findings(t, d, false)
	require.Empty(t, r.Findings)
	requireLayers(t, d, "two", "one", "two")
	requireBox(t, d, "before", "before")
	require.ErrorIs(t, d.snapshotter.Commit(ctx, "half", unpack), errdefs.ErrFailedPrecondition, "the times no longer prove anything")
	require.NoError(t, d.snapshotter.Remove(ctx, unpack))
	// Existing snapshots are written to, and so are new snapshots of them.
	layers(t, d, "three")
	fillBox(t, d, "after", "two")
	mounts, err := d.snapshotter.Mounts(ctx, "before")
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Commit(ctx, "copy", "after"))
	fillBox(t, d, "last", "copy")
	writeBox(t, mounts, "again")
	requireBox(t, d, "before", "again")
	requireBox(t, d, "last", "last")
	requireLayers(t, d, "two", "one", "two")
	requireLayers(t, d, "three", "three")
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	_, r = findings(t, d, false)
	require.Empty(t, r.Findings)
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, "thinsnap")
	h.onTheirs(t, func(path string) {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(h.content(), content))
	})
	h.changeMetadata(t, "thin_check /dev/METADATA")
	require.NoError(t, DestroyPool(ctx, c))
	h.requireTheirs(t)
}

// TestVolumesOfOthersInALease: while thinsnap is down, another user of a foreign pool creates
// volumes with leased ids. They stay, and thinsnap's own leftovers of a crash are deleted.
func TestVolumesOfOthersInALease(t *testing.T) {
	h := newHandmade(t, "THEIRS")
	c := inPool(t, "by-hand")
	c.Pool.SparesMax = 0
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	ours := layers(t, d, "one")[0]
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, "thinsnap")
	empty, theirSnapshot, left := ours+5, ours+6, ours+7
	require.NoError(t, h.pool().CreateThin(empty))
	require.NoError(t, h.pool().CreateSnap(theirSnapshot, theirs))
	require.NoError(t, h.pool().CreateSnap(left, ours))
	d, err = Open(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
	require.Contains(t, h.ids(t), empty)
	require.Contains(t, h.ids(t), theirSnapshot)
	require.NotContains(t, h.ids(t), left)
	kept, err := d.Leftovers(t.Context())
	require.NoError(t, err)
	require.Len(t, kept, 2)
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, "thinsnap")
	require.NoError(t, h.pool().Delete(empty))
	require.NoError(t, h.pool().Delete(theirSnapshot))
}
