package daemon

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

// used returns a root directory as a daemon leaves it.
func used(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, prepareRoot(root))
	for _, dir := range []string{"pool", "mounts"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o700))
	}
	for _, file := range []string{"metadata.db", "pool/data", "pool/metadata"} {
		require.NoError(t, os.WriteFile(filepath.Join(root, file), nil, 0o600))
	}
	return root
}

func TestRootIsCreatedPrivate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a", "root")
	require.NoError(t, prepareRoot(root))
	requireMode(t, 0o700, root)
	require.NoError(t, prepareRoot(root), "again")
}

func TestRootPermissionsOfOthersAreRemoved(t *testing.T) {
	root := used(t)
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "pool"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "pool/data"), 0o644))
	require.NoError(t, prepareRoot(root))
	requireMode(t, 0o700, root)
	requireMode(t, 0o700, filepath.Join(root, "pool"))
	requireMode(t, 0o600, filepath.Join(root, "pool/data"))
}

func TestRootOfOthersIsRefused(t *testing.T) {
	root := used(t)
	for _, mode := range []os.FileMode{0o777, 0o720, 0o702, 0o777 | os.ModeSticky} {
		require.NoError(t, os.Chmod(root, mode))
		err := prepareRoot(root)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, mode)
		require.ErrorContains(t, err, "chmod 0700")
		requireMode(t, mode.Perm(), root)
	}
	require.NoError(t, os.Chmod(root, 0o700))
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	require.NoError(t, os.Chown(root, 65534, -1))
	err := prepareRoot(root)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "belongs to user 65534")
}

func TestRootMayBeLink(t *testing.T) {
	root := used(t)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(root, link))
	require.NoError(t, prepareRoot(link))
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, prepareRoot(link))
	requireMode(t, 0o700, root)
}

// TestLinkInRootIsRefused: also a dangling link, whose target would be created.
func TestLinkInRootIsRefused(t *testing.T) {
	for _, name := range []string{"metadata.db", "mounts", "pool", "pool/data", "pool/metadata"} {
		for _, dangling := range []bool{false, true} {
			root := used(t)
			path, elsewhere := filepath.Join(root, name), filepath.Join(t.TempDir(), "elsewhere")
			require.NoError(t, os.Rename(path, elsewhere))
			require.NoError(t, os.Symlink(elsewhere, path))
			if dangling {
				require.NoError(t, os.RemoveAll(elsewhere))
			}
			err := prepareRoot(root)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, path)
			require.ErrorContains(t, err, path+" is a symbolic link")
			require.ErrorContains(t, err, "mount --bind")
		}
	}
}
