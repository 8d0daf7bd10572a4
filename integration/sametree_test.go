package integration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/tree"
)

// differencesShown limits the output of a failure.
const differencesShown = 50

func testSameTree(t *testing.T, b *testbed) {
	const reference = "overlayfs"
	start := time.Now()
	walk := func(snapshotter string) tree.Tree {
		b.Pull(t, snapshotter, b.images.Debian)
		var files tree.Tree
		b.MountImage(t, snapshotter, b.images.Debian, func(dir string) {
			var err error
			files, err = tree.Walk(dir)
			require.NoError(t, err)
		})
		return files
	}
	want, got := walk(reference), walk(b.snapshotter)
	b.RemoveImage(t, b.images.Debian)

	requireOddFiles(t, want)
	forgetUnpackTimes(want, got, start)
	differences := tree.Compare(want, got)
	if len(differences) > differencesShown {
		differences = append(differences[:differencesShown], "…")
	}
	for _, difference := range differences {
		t.Error(difference)
	}
	t.Logf("compared %d files", len(want))
}

// forgetUnpackTimes ignores the times of the directories that the unpack itself created: a layer has files in them but
// no entry for them. All other times have to be equal.
func forgetUnpackTimes(want, got tree.Tree, start time.Time) {
	for path, entry := range want {
		other, ok := got[path]
		if ok && entry.Mode&unix.S_IFMT == unix.S_IFDIR && entry.ModTime.After(start) {
			other.ModTime = entry.ModTime
			got[path] = other
		}
	}
}

// requireOddFiles requires that the image has the files that the comparison is about: two trees without them would be
// equal, too.
func requireOddFiles(t *testing.T, files tree.Tree) {
	t.Helper()
	require.Greater(t, len(files), 1500)
	require.Equal(t, []string{"odd/empty/dirs/c", "odd/links/b"}, files["odd/links/a"].Links)
	require.Equal(t, uint32(0o107777), files["odd/modes/7777"].Mode)
	require.Equal(t, uint32(4294967294), files["odd/owners/4294967294:4294967294"].UID)
	require.Equal(t, unix.Mkdev(300, 70000), files["odd/nodes/large"].Device)
	require.Equal(t, uint32(unix.S_IFIFO), files["odd/nodes/fifo"].Mode&unix.S_IFMT)
	require.Contains(t, files["odd/xattrs/capability"].Xattrs, "security.capability")
	require.Equal(t, "changed", files["odd/xattrs/user"].Xattrs["user.thinsnap"])
	require.Equal(t, "/odd/links", files["odd/swap/dir-to-symlink"].Target)
	require.Equal(t, time.Unix(86400, 123456789), files["odd/times/nanoseconds"].ModTime)
	require.Contains(t, files, "odd/opaque/old/new")
	for _, gone := range []string{"odd/opaque/old/file", "odd/gone/tree/of", "odd/links/absolute", "media"} {
		require.NotContains(t, files, gone)
	}
}
