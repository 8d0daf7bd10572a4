package snapshotter_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

// TestIDsAreUsedAgainOnTheKernel: the last id is leased, and then those that are free, while a
// snapshot lives on and after a reboot.
func TestIDsAreUsedAgainOnTheKernel(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	mounts, err := h.Prepare(ctx, "old", "")
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { write(t, dir, "file", "old") })
	require.NoError(t, h.Commit(ctx, "layer", "old"))
	id := func(key string) (id uint32) {
		require.NoError(t, h.store.View(ctx, func(tx *metadata.Tx) error {
			rec, err := tx.Get(key)
			id = rec.VolumeID
			return err
		}))
		return id
	}
	_, err = h.Prepare(ctx, "box", "layer")
	require.NoError(t, err)
	early := id("box")
	require.NoError(t, h.Remove(ctx, "box"))
	require.NoError(t, h.Cleanup(ctx))
	require.NoError(t, h.Close())
	setNextID(t, filepath.Join(h.root, "metadata.db"), metadata.MaxDevice-2)
	require.NoError(t, h.open(ctx, config))
	require.NoError(t, h.Cleanup(ctx)) // so that no lease stays open
	ids := make(map[uint32]bool)
	for i := range 90 {
		mounts, err := h.Prepare(ctx, "box", "layer")
		require.NoError(t, err)
		if i%30 == 0 {
			mounted(t, mounts, func(dir string) {
				require.Equal(t, "old", read(t, dir, "file"))
				write(t, dir, "file", fmt.Sprint(i))
			})
		}
		ids[id("box")] = true
		require.NoError(t, h.Remove(ctx, "box"))
		if i == 50 {
			require.NoError(t, h.reboot(ctx, config))
		}
	}
	require.Contains(t, ids, uint32(metadata.MaxDevice))
	require.Contains(t, ids, early)
	require.NoError(t, h.Cleanup(ctx))
	mounts, err = h.View(ctx, "view", "layer")
	require.NoError(t, err)
	mounted(t, mounts, func(dir string) { require.Equal(t, "old", read(t, dir, "file")) })
	require.NoError(t, h.Remove(ctx, "view"))
}
