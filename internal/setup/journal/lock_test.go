package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "setup.lock")
	require.NoError(t, os.WriteFile(path, []byte("process 1 (of an earlier run with a long name)\n"), 0o600))
	release, err := Lock(path, "thinsnap setup k3s")
	require.NoError(t, err)
	_, err = Lock(path, "thinsnap setup containerd")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, fmt.Sprintf("process %d (thinsnap setup k3s) holds %s: run the command again", os.Getpid(), path))
	require.NoError(t, release())
	release, err = Lock(path, "thinsnap setup containerd")
	require.NoError(t, err)
	require.NoError(t, release())

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	_, err = Lock(link, "x")
	require.Error(t, err, "another user's link")
}
