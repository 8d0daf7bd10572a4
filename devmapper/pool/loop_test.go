package pool

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// TestNoLinkIsFollowed: the pool uses only regular files in their places, never the target of a
// link.
func TestNoLinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	target, data, metadata := filepath.Join(dir, "target"), filepath.Join(dir, "data"), filepath.Join(dir, "metadata")
	require.NoError(t, os.Symlink(target, data))
	spec := LoopSpec{Name: "p", DataFile: data, MetadataFile: metadata}
	require.ErrorIs(t, spec.CreateFiles(t.Context(), 1<<20, 1<<20), unix.ELOOP)
	require.NoFileExists(t, target)

	require.NoError(t, os.WriteFile(target, make([]byte, 4096), 0o600))
	require.ErrorIs(t, spec.CreateFiles(t.Context(), 1<<20, 1<<20), unix.ELOOP)
	require.ErrorIs(t, checkMetadataFile(data), unix.ELOOP)
	_, err := blockdev.LoopAttach(data, blockdev.LoopOptions{})
	require.ErrorIs(t, err, unix.ELOOP)
	info, err := os.Stat(target)
	require.NoError(t, err)
	require.EqualValues(t, 4096, info.Size())
}
