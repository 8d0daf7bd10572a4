package trustedpath_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/trustedpath"
)

// A user who can write to a directory above a path decides where it leads.
func TestResolve(t *testing.T) {
	refused := func(path, want string) {
		t.Helper()
		_, err := trustedpath.Resolve(path)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, want)
	}
	above := filepath.Join(t.TempDir(), "srv")
	require.NoError(t, os.Mkdir(above, 0o755))
	for _, mode := range []os.FileMode{0o777, 0o775} {
		require.NoError(t, os.Chmod(above, mode))
		refused(filepath.Join(above, "deep", "root"), above+" has mode")
	}
	require.NoError(t, os.Chmod(above, 0o777|os.ModeSticky))
	path, err := trustedpath.Resolve(filepath.Join(above, "root"))
	require.NoError(t, err, "as in /tmp")
	require.Equal(t, filepath.Join(above, "root"), path)
	require.NoError(t, os.Chmod(above, 0o777))
	refused(filepath.Join(above, "root"), above+" has mode")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(filepath.Join(above, "root"), link))
	refused(link, above+" has mode")
	require.NoError(t, os.Symlink("loop", filepath.Join(filepath.Dir(link), "loop")))
	_, err = trustedpath.Resolve(filepath.Join(filepath.Dir(link), "loop"))
	require.ErrorIs(t, err, syscall.ELOOP)

	require.NoError(t, os.Chmod(above, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(above, "real", "deep"), 0o755))
	require.NoError(t, os.Symlink("../real/./deep/..", filepath.Join(above, "real", "relative")))
	for given, want := range map[string]string{
		filepath.Join(above, "real", "relative", "new", "root"): filepath.Join(above, "real", "new", "root"),
		above + "/x/../real//deep/":                             filepath.Join(above, "real", "deep"),
		link:                                                    filepath.Join(above, "root"),
		"/":                                                     "/",
	} {
		path, err := trustedpath.Resolve(given)
		require.NoError(t, err)
		require.Equal(t, want, path)
	}

	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	victim, home := filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "alice")
	require.NoError(t, os.Mkdir(victim, 0o755))
	require.NoError(t, os.Mkdir(home, 0o755))
	require.NoError(t, os.Symlink(victim, filepath.Join(home, "thinsnap")))
	require.NoError(t, os.Chown(home, 1000, 1000))
	refused(filepath.Join(home, "thinsnap"), home+" belongs to user 1000")
	refused(filepath.Join(home, "new"), home+" belongs to user 1000")

	sticky := filepath.Join(t.TempDir(), "tmp")
	require.NoError(t, os.Mkdir(sticky, 0o755))
	require.NoError(t, os.Chmod(sticky, 0o777|os.ModeSticky))
	require.NoError(t, os.Symlink(victim, filepath.Join(sticky, "thinsnap")))
	require.NoError(t, os.Lchown(filepath.Join(sticky, "thinsnap"), 1000, 1000))
	refused(filepath.Join(sticky, "thinsnap"), "belongs to user 1000")
}
