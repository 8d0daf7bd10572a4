package snapshotter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestKernelOlderStoreWithinALease: the store is restored from a copy that is older than the pool by less
// than a lease. Content written since is kept and readable.
func TestKernelOlderStoreWithinALease(t *testing.T) {
	config := filesystems[filesystem.Ext4]
	ctx, h := newTestHost(t, config)
	h.layer(ctx, t, "old", "", "o", 1<<20)
	require.NoError(t, h.Cleanup(ctx))
	path := filepath.Join(h.root, "metadata.db")
	copied, err := os.ReadFile(path)
	require.NoError(t, err)

	require.NoError(t, h.prepare(ctx, "ended", "old"))
	ended := h.mount(ctx, t, "ended")
	require.NoError(t, os.WriteFile(filepath.Join(ended, "more"), []byte(repeated("n", 1<<20)), 0o600))
	require.NoError(t, mount.UnmountAll(ended, 0))
	require.NoError(t, h.prepare(ctx, "box", "old"))
	box := h.mount(ctx, t, "box")
	require.NoError(t, os.WriteFile(filepath.Join(box, "more"), []byte("of the container"), 0o600))
	require.NoError(t, h.prepare(ctx, "idle", "old"))
	volume := func(key string) (id uint32) {
		require.NoError(t, h.store.View(ctx, func(tx *metadata.Tx) error {
			rec, err := tx.Get(key)
			id = rec.VolumeID
			return err
		}))
		return id
	}
	first, container, idle := volume("ended"), volume("box"), volume("idle")
	require.NoError(t, h.Cleanup(ctx))
	require.NoError(t, h.Close())
	require.NoError(t, os.WriteFile(path, copied, 0o600))
	require.NoError(t, h.open(ctx, config))
	require.NoError(t, h.Cleanup(ctx))
	kept := func() (ids []uint32) {
		all, err := h.Leftovers(ctx)
		require.NoError(t, err)
		for _, k := range all {
			require.GreaterOrEqual(t, k.Mapped, uint64(1<<20))
			ids = append(ids, k.VolumeID)
		}
		return ids
	}
	require.Equal(t, []uint32{first}, kept(), "the container is mounted")
	require.NoError(t, mount.UnmountAll(box, 0))
	require.NoError(t, h.Cleanup(ctx))
	require.Equal(t, []uint32{first, container}, kept())
	volumes, err := h.pool.Volumes(ctx, thin.ID(idle), thin.ID(idle))
	require.NoError(t, err)
	require.Empty(t, volumes, "nothing was written to it")

	vol, err := h.pool.Activate(ctx, thin.ID(container), config.BaseBytes, true)
	require.NoError(t, err)
	mounted(t, []mount.Mount{{Type: "ext4", Source: vol.Path, Options: []string{"ro", "noload"}}}, func(dir string) {
		require.Equal(t, repeated("o", 1<<20), read(t, dir, "file"))
		require.Equal(t, "of the container", read(t, dir, "more"))
	})
	for _, id := range kept() {
		require.NoError(t, h.RemoveLeftover(ctx, thin.ID(id)))
	}
	require.NoError(t, h.Cleanup(ctx))
	volumes, err = h.pool.Volumes(ctx, thin.ID(first), thin.ID(container))
	require.NoError(t, err)
	require.Empty(t, volumes)
	h.requireContent(ctx, t, "old", "o", 1<<20)
}

// TestKernelOlderStoreWithoutACommit: a copy in which a layer is still being unpacked is refused, so
// containerd's collector cannot remove that key. A newer copy has the layer.
func TestKernelOlderStoreWithoutACommit(t *testing.T) {
	config := filesystems[filesystem.Ext4]
	ctx, h := newTestHost(t, config)
	h.layer(ctx, t, "old", "", "o", 1<<20)
	require.NoError(t, h.prepare(ctx, unpackKey, "old"))
	dir := h.mount(ctx, t, unpackKey)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte(repeated("n", 1<<20)), 0o600))
	require.NoError(t, mount.UnmountAll(dir, 0))
	require.NoError(t, h.Cleanup(ctx))
	path := filepath.Join(h.root, "metadata.db")
	copied, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, h.Commit(ctx, "new", unpackKey))
	require.NoError(t, h.Close())
	newer, err := os.ReadFile(path)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(path, copied, 0o600))
	err = h.open(ctx, config)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "transaction id")
	require.NoError(t, h.store.Close())
	require.NoError(t, os.WriteFile(path, newer, 0o600))
	require.NoError(t, h.open(ctx, config))
	require.NoError(t, h.Cleanup(ctx))
	h.requireContent(ctx, t, "new", "n", 1<<20)
}
