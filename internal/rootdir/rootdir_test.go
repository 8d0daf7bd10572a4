package rootdir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func requireMode(t *testing.T, want os.FileMode, path string) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, want, info.Mode().Perm(), path)
}

// used returns a root directory with everything that thinsnap creates in it.
func used(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, Prepare(root))
	for _, dir := range []string{"pool", "mounts", "adopt"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o700))
	}
	for _, file := range []string{"metadata.db", "pool/data", "pool/metadata", "destroying"} {
		require.NoError(t, os.WriteFile(filepath.Join(root, file), nil, 0o600))
	}
	return root
}

func TestRootIsCreatedPrivate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a", "root")
	require.NoError(t, Prepare(root))
	requireMode(t, 0o700, root)
	require.NoError(t, Prepare(root), "again")
}

func TestRootPermissionsOfOthersAreRemoved(t *testing.T) {
	root := used(t)
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "pool"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "pool/data"), 0o644))
	require.NoError(t, Prepare(root))
	requireMode(t, 0o700, root)
	requireMode(t, 0o700, filepath.Join(root, "pool"))
	requireMode(t, 0o600, filepath.Join(root, "pool/data"))
}

func TestRootOfOthersIsRefused(t *testing.T) {
	root := used(t)
	for _, mode := range []os.FileMode{0o777, 0o720, 0o702, 0o777 | os.ModeSticky} {
		require.NoError(t, os.Chmod(root, mode))
		err := Prepare(root)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, mode)
		require.ErrorContains(t, err, "chmod 0700")
		requireMode(t, mode.Perm(), root)
	}
	require.NoError(t, os.Chmod(root, 0o700))
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	require.NoError(t, os.Chown(root, 65534, -1))
	err := Prepare(root)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "belongs to user 65534")
}

// A directory that others use is neither closed to them nor used as a root.
func TestDirectoryOfOthersIsNoRoot(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "lib")
	require.NoError(t, os.MkdirAll(filepath.Join(shared, "dpkg"), 0o755))
	require.NoError(t, os.Chmod(shared, 0o755))
	err := Prepare(shared)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, `"dpkg"`)
	requireMode(t, 0o755, shared)
	requireNames(t, shared, "dpkg")

	require.NoError(t, os.Chmod(shared, 0o700))
	require.NoError(t, Prepare(shared), "closed by the operator")

	mounted := used(t)
	require.NoError(t, os.Mkdir(filepath.Join(mounted, "lost+found"), 0o700))
	require.NoError(t, os.Chmod(mounted, 0o755))
	require.NoError(t, Prepare(mounted), "a file system of its own")
	requireMode(t, 0o700, mounted)
}

func requireNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	require.ElementsMatch(t, want, names)
}

// A user who can write to a directory above the root decides which directory is the root.
func TestDirectoriesAboveTheRoot(t *testing.T) {
	above := filepath.Join(t.TempDir(), "srv")
	require.NoError(t, os.Mkdir(above, 0o755))
	require.NoError(t, os.Chmod(above, 0o777))
	err := Prepare(filepath.Join(above, "deep", "root"))
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, above+" has mode")
	requireNames(t, above)
}

// Others may have such a file open, or another name for it. Only rootNames lists the contents of
// the root.
func TestPartsOfOthersAreRefused(t *testing.T) {
	for _, name := range rootNames() {
		root := used(t)
		path := filepath.Join(root, name)
		info, err := os.Stat(path)
		require.NoError(t, err, "a daemon makes it")
		require.NoError(t, os.Chmod(root, 0o755))
		if info.Mode().IsRegular() {
			other := filepath.Join(t.TempDir(), "other")
			require.NoError(t, os.Link(path, other))
			err := Prepare(root)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, path+" has another name")
			requireMode(t, 0o755, root)
			require.NoError(t, os.Remove(other))

			// A crash during the store's creation leaves a second name beside it.
			other = path + ".new-1"
			require.NoError(t, os.Chmod(root, 0o700))
			require.NoError(t, os.Link(path, other))
			require.NoError(t, Prepare(root))
			require.NoError(t, os.Remove(other))
			require.NoError(t, os.Chmod(root, 0o755))
		}
		if os.Geteuid() == 0 {
			require.NoError(t, os.Chown(path, 1000, 1000))
			err := Prepare(root)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, path+" belongs to user 1000")
			requireMode(t, 0o755, root)
			require.NoError(t, os.Chown(path, 0, 0))
		}
		require.NoError(t, Prepare(root))
	}
}

func TestRootMayBeLink(t *testing.T) {
	root := used(t)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(root, link))
	require.NoError(t, Prepare(link))
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, Prepare(link))
	requireMode(t, 0o700, root)
}

// Also a dangling link, whose target would be created.
func TestLinkInRootIsRefused(t *testing.T) {
	for _, name := range []string{"metadata.db", "mounts", "pool", "pool/data", "pool/metadata", "destroying"} {
		for _, dangling := range []bool{false, true} {
			root := used(t)
			path, elsewhere := filepath.Join(root, name), filepath.Join(t.TempDir(), "elsewhere")
			require.NoError(t, os.Rename(path, elsewhere))
			require.NoError(t, os.Symlink(elsewhere, path))
			if dangling {
				require.NoError(t, os.RemoveAll(elsewhere))
			}
			err := Prepare(root)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, path)
			require.ErrorContains(t, err, path+" is a symbolic link")
			require.ErrorContains(t, err, "mount --bind")
		}
	}
}
