package snapshotter_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestImagesGiveSpaceBack: the disk below the pool gets back the blocks that layers removed together share.
func TestImagesGiveSpaceBack(t *testing.T) {
	const size = 4 << 20
	layers := 4
	if dmtest.Thorough() {
		layers = 16
	}
	ctx, h := newTestHost(t, filesystems["ext4"])
	_, err := h.Prepare(ctx, "box", "")
	require.NoError(t, err)
	empty := h.allocated(t)
	parent := ""
	for i := range layers {
		name := fmt.Sprint("layer", i)
		mounts, err := h.Prepare(ctx, "new", parent)
		require.NoError(t, err)
		mounted(t, mounts, func(dir string) {
			require.NoError(t, overwrite(filepath.Join(dir, name), bytes.Repeat([]byte(name), size/len(name))))
		})
		require.NoError(t, h.Commit(ctx, name, "new"))
		parent = name
	}
	require.Greater(t, h.allocated(t), empty+int64(layers)*size)
	for i := range layers {
		require.NoError(t, h.Remove(ctx, fmt.Sprint("layer", layers-1-i)))
	}
	require.NoError(t, h.Cleanup(ctx))
	require.Less(t, h.allocated(t), empty+size)
}
