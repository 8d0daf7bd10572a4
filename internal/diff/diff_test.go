package diff_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/diff"
)

// everything is a range that covers the devices.
func everything() []diff.Range { return []diff.Range{{Length: 1 << 62, Lower: true, Upper: true}} }

// requireAsWalkingDiffer requires the same layer as that of containerd's walking differ.
func requireAsWalkingDiffer(t *testing.T, lower, upper diff.Volume, changed []diff.Range) diff.Listing {
	t.Helper()
	listing, err := diff.List(t.Context(), lower, upper, changed)
	require.NoError(t, err)
	var ours, theirs bytes.Buffer
	require.NoError(t, diff.WriteTar(t.Context(), &ours, upper, listing.Changes))
	require.NoError(t, archive.WriteDiff(t.Context(), &theirs, lower.Root, upper.Root))
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(theirs.Bytes())), fmt.Sprintf("%x", sha256.Sum256(ours.Bytes())),
		"the changes were: %v", listing.Changes)
	return listing
}

// whole is a time without nanoseconds, like the times in an image.
func whole() time.Time { return time.Unix(1700000000, 0) }

// write writes a file, and sets a time without nanoseconds.
func write(t *testing.T, dir, path, content string) {
	t.Helper()
	path = filepath.Join(dir, path)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	require.NoError(t, os.Chtimes(path, whole(), whole()))
}

// populate creates a tree with each kind of entry.
func populate(t *testing.T, dir string) {
	t.Helper()
	for i := range 40 {
		write(t, dir, fmt.Sprintf("usr/lib/file-%d", i), fmt.Sprintf("content %d", i))
	}
	for _, name := range []string{"a/x", "a-b", "a b/z", "a.d/y", "a\x01", "\xff\xfe"} { // "/" sorts as 0
		write(t, dir, "order/"+name, name)
	}
	for _, name := range []string{"deleted/deep/file", "deletedfile", "replaced/by-a-file", "becomes-a-directory", "renamed/one",
		"renamed/two/three", "rewritten", "touched", "grown", "chmod", "linked/first", "linked/changed", "open"} {
		write(t, dir, name, name)
	}
	for _, link := range [][2]string{{"linked/first", "linked/second"}, {"linked/changed", "z-other-name"},
		{"linked/changed", "a-other-name"}} {
		require.NoError(t, os.Link(filepath.Join(dir, link[0]), filepath.Join(dir, link[1])))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	for _, name := range []string{"link", "link-rewritten"} {
		require.NoError(t, os.Symlink("target", filepath.Join(dir, name)))
		requireTime(t, filepath.Join(dir, name))
	}
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
}

// requireTime sets the time of a path without following a link.
func requireTime(t *testing.T, path string) {
	t.Helper()
	ts := unix.NsecToTimespec(whole().UnixNano())
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// change makes each kind of change.
func change(t *testing.T, dir string) {
	t.Helper()
	at := func(path string) string { return filepath.Join(dir, path) }
	require.NoError(t, os.RemoveAll(at("deleted")))
	require.NoError(t, os.Remove(at("deletedfile")))
	require.NoError(t, os.RemoveAll(at("replaced")))
	write(t, dir, "replaced", "a file")
	require.NoError(t, os.Remove(at("becomes-a-directory")))
	write(t, dir, "becomes-a-directory/with/a-file", "x")
	require.NoError(t, os.Rename(at("renamed"), at("a-new-name")))
	write(t, dir, "rewritten", "REWRITTEN") // with the same size and time
	require.NoError(t, os.Chtimes(at("touched"), time.Time{}, time.Unix(1700000001, 500)))
	require.NoError(t, os.WriteFile(at("grown"), []byte("grown and more"), 0o644))
	require.NoError(t, os.Chmod(at("chmod"), 0o600))
	require.NoError(t, os.Chmod(at("empty"), 0o700|os.ModeSticky))
	write(t, dir, "linked/changed", "CHANGED BY ONE NAME")
	require.NoError(t, os.Link(at("linked/first"), at("linked/third")))
	require.NoError(t, os.Remove(at("link-rewritten")))
	require.NoError(t, os.Symlink("tegrat", at("link-rewritten")))
	requireTime(t, at("link-rewritten"))
	require.NoError(t, os.Mkdir(at("order/a/new"), 0o755))
	write(t, dir, "order/a!", "new")
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(s)
	cwd, err := unix.Open(at("order"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(cwd)
	require.NoError(t, unix.Bind(s, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/socket", cwd)}))
}

func TestLayerIsThatOfTheWalkingDiffer(t *testing.T) {
	lower, upper := t.TempDir(), t.TempDir()
	populate(t, lower)
	require.NoError(t, fs.CopyDir(upper, lower))
	copyTimes(t, lower, upper)
	change(t, upper)
	listing := requireAsWalkingDiffer(t, diff.Volume{Root: lower}, diff.Volume{Root: upper}, everything())
	require.Equal(t, diff.Walk, listing.Level)
	require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindDelete, Path: "/deleted"})
	require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindModify, Path: "/rewritten"})
	require.Contains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindAdd, Path: "/a-new-name/two/three"})
	require.NotContains(t, listing.Changes, diff.Change{Kind: fs.ChangeKindUnmodified, Path: "/usr/lib/file-0"})

	requireAsWalkingDiffer(t, diff.Volume{Root: upper}, diff.Volume{Root: lower}, everything())
	same := requireAsWalkingDiffer(t, diff.Volume{Root: lower}, diff.Volume{Root: lower}, nil)
	require.Empty(t, same.Changes)
	require.Zero(t, same.Read)
}

// copyTimes copies the times of all entries, because fs.CopyDir drops the nanoseconds of
// directories.
func copyTimes(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		ts := unix.NsecToTimespec(info.ModTime().UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(to, relative), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

// TestTimesOfALayerAreBounded: SOURCE_DATE_EPOCH is an upper bound of the times in a layer.
func TestTimesOfALayerAreBounded(t *testing.T) {
	lower, upper := t.TempDir(), t.TempDir()
	write(t, upper, "file", "content")
	listing, err := diff.List(t.Context(), diff.Volume{Root: lower}, diff.Volume{Root: upper}, everything())
	require.NoError(t, err)
	var ours, theirs bytes.Buffer
	epoch := time.Unix(1500000000, 0)
	require.NoError(t, diff.WriteTar(t.Context(), &ours, diff.Volume{Root: upper}, listing.Changes,
		archive.WithModTimeUpperBound(epoch)))
	require.NoError(t, archive.WriteDiff(t.Context(), &theirs, lower, upper, archive.WithSourceDateEpoch(&epoch)))
	require.Equal(t, theirs.Bytes(), ours.Bytes())
}

func TestCancelledDiffEnds(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", "content")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := diff.List(ctx, diff.Volume{Root: t.TempDir()}, diff.Volume{Root: dir}, everything())
	require.ErrorIs(t, err, context.Canceled)
	changes := []diff.Change{{Kind: fs.ChangeKindAdd, Path: "/file"}}
	require.ErrorIs(t, diff.WriteTar(ctx, &bytes.Buffer{}, diff.Volume{Root: dir}, changes), context.Canceled)
}
