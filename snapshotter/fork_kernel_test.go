package snapshotter_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestForkOfAnUnusedSnapshot: also after a reboot, with an inactive volume. The source's volume is only
// read.
func TestForkOfAnUnusedSnapshot(t *testing.T) {
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			ctx, h := newTestHost(t, filesystems[fs])
			mounts, err := h.Prepare(ctx, "source", "")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) { write(t, dir, "file", "content") })
			require.NoError(t, h.reboot(ctx, filesystems[fs]))
			token, err := h.IssueFork(ctx, "source")
			require.NoError(t, err)
			fork, err := h.Prepare(ctx, "fork", "", from(token))
			require.NoError(t, err)
			require.Zero(t, written(t, mounts[0].Source))
			require.Zero(t, written(t, fork[0].Source))
			mounted(t, fork, func(dir string) {
				require.Equal(t, "content", read(t, dir, "file"))
				write(t, dir, "file", "changed")
			})
			mounted(t, mounts, func(dir string) { require.Equal(t, "content", read(t, dir, "file")) })
			require.NoError(t, h.Commit(ctx, "layer", "fork"))
			require.NoError(t, h.Remove(ctx, "source"))
			require.NoError(t, h.Cleanup(ctx))
		})
	}
}

// TestForkWhileItIsUnmounted: newer kernels do not freeze a file system during its unmount, so the fork
// waits.
func TestForkWhileItIsUnmounted(t *testing.T) {
	ctx, h := newTestHost(t, filesystems[filesystem.Ext4])
	mounts, err := h.Prepare(ctx, "source", "")
	require.NoError(t, err)
	for range 10 {
		unmounted := make(chan struct{})
		mounted(t, mounts, func(dir string) {
			write(t, dir, "file", "content")
			go func() {
				defer close(unmounted)
				token, err := h.IssueFork(ctx, "source")
				noError(t, err)
				_, err = h.Prepare(ctx, "fork", "", from(token))
				noError(t, err)
			}()
		})
		<-unmounted
		require.NoError(t, h.Remove(ctx, "fork"))
	}
	require.NoError(t, h.Cleanup(ctx))
}
