package snapshotter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestCopiesGiveSpaceBack: to the disk below the pool, what only a copy had, and what it shared with an
// original that was removed.
func TestCopiesGiveSpaceBack(t *testing.T) {
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			const size = 4 << 20
			ctx, h := newTestHost(t, filesystems[fs])
			mounts, err := h.Prepare(ctx, "box", "")
			require.NoError(t, err)
			empty := h.allocated(t)
			mounted(t, mounts, func(dir string) {
				f, err := os.Create(filepath.Join(dir, "file"))
				require.NoError(t, err)
				defer f.Close()
				rewrite := func(b byte) {
					content := make([]byte, size)
					for i := range content {
						content[i] = b
					}
					_, err := f.WriteAt(content, 0)
					require.NoError(t, err)
					require.NoError(t, f.Sync())
				}
				rewrite('a')
				for round := range 5 {
					copied := h.freeze(ctx, t, "box")
					rewrite('b' + byte(round))
					copied.Release(ctx)
					require.NoError(t, h.Cleanup(ctx))
				}
				require.Less(t, h.allocated(t), empty+3*size)
			})
			copied := h.freeze(ctx, t, "box")
			require.NoError(t, h.Remove(ctx, "box"))
			require.NoError(t, h.Cleanup(ctx))
			copied.Release(ctx)
			require.NoError(t, h.Cleanup(ctx))
			require.Less(t, h.allocated(t), empty+size)
		})
	}
}
