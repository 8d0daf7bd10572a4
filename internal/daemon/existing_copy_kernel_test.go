package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestExistingPoolKeepsACopyOfACrash: thinsnap does not stamp a foreign pool. So a frozen copy from
// before a crash looks like another user's volume, or like a snapshot that an older store does not
// have. It is kept for the operator.
func TestExistingPoolKeepsACopyOfACrash(t *testing.T) {
	h := newHandmade(t, "")
	c := inPool(t, "by-hand")
	c.Pool.SparesMax = 0
	ctx := t.Context()
	d, err := Open(ctx, c)
	require.NoError(t, err)
	mounts, err := d.snapshotter.Prepare(ctx, "box", "")
	require.NoError(t, err)
	var copied thin.ID
	var held *os.File
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		write := func(content string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600))
		}
		write("before")
		frozen, err := d.snapshotter.Freeze(ctx, "box")
		require.NoError(t, err)
		copied = frozen.ID
		held, err = os.Open(frozen.Path) // a stop does not delete an open volume
		require.NoError(t, err)
		write("after")
		return nil
	}))
	ids := h.ids(t)
	require.Contains(t, ids, copied)
	require.NoError(t, d.Close())
	require.NoError(t, held.Close())

	d, err = Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	h.requireTheirs(t, ids[1:]...)
	kept, err := d.Leftovers(ctx)
	require.NoError(t, err)
	require.Len(t, kept, 1)
	require.EqualValues(t, copied, kept[0].DeviceID)
	info, err := d.Info(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1, info.Devices.Kept)

	_, err = d.RemoveLeftover(ctx, kept[0].DeviceID)
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	require.NotContains(t, h.ids(t), copied)
	mounts, err = d.snapshotter.Mounts(ctx, "box")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		content, err := os.ReadFile(filepath.Join(dir, "file"))
		require.Equal(t, "after", string(content))
		return err
	}))
	require.NoError(t, d.Close())
	destroy(t, c)
	h.requireTheirs(t)
}
