package clients_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// newAdoptedBench returns a bench on a pool with the layer "default/1/layer" and the container
// "default/2/box", adopted from a containerd with the installation "one".
func newAdoptedBench(t *testing.T) *bench {
	t.Helper()
	ctx := t.Context()
	pool := fakepool.New(4 << 30)
	require.NoError(t, pool.CreateThin(ctx, 1))
	vol, err := pool.Activate(ctx, 1, 64<<20, false)
	require.NoError(t, err)
	require.NoError(t, pool.Make(ctx, vol.Path, filesystem.Ext4, nil))
	sb, err := pool.Identify(vol.Path)
	require.NoError(t, err)
	require.NoError(t, pool.Deactivate(ctx, 1))
	require.NoError(t, pool.CreateSnap(ctx, 2, 1))
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(ctx, func(tx *metadata.Tx) error {
		return tx.Adopt(metadata.Adoption{
			Pool: metadata.PoolRecord{
				ID: "fake", Mode: metadata.ModeExisting, Name: "fake", BlockSize: 64 << 10, Complete: true,
				Existing: metadata.ExistingPool{Adopted: []metadata.AdoptedVolume{{VolumeID: 1, Filesystem: filesystem.Ext4, UUID: sb.UUID}}},
			},
			Client: metadata.ClientRecord{Number: 1, Proxy: "thinsnap", Installation: "one"},
			Snapshots: []metadata.Snapshot{
				{Key: "default/1/layer", Kind: snapshots.KindCommitted, VolumeID: 1, Size: 64 << 20, Filesystem: filesystem.Ext4},
				{
					Key: "default/2/box", Parent: "default/1/layer", Kind: snapshots.KindActive, VolumeID: 2, Size: 64 << 20,
					Filesystem: filesystem.Ext4,
				},
			},
		})
	}))
	inner, err := snapshotter.New(ctx, snapshotter.Config{Filesystem: filesystem.Ext4, BaseBytes: 64 << 20}, store, pool, pool)
	require.NoError(t, err)
	b := &bench{store: store, inner: inner.In("")}
	b.restart()
	t.Cleanup(func() {
		b.Close()
		require.NoError(t, inner.Close())
	})
	return b
}

// The first containerd after an adoption must use the proxy name under which it has the snapshots.
func TestAdoptedProxyName(t *testing.T) {
	b := newAdoptedBench(t)
	b.knows("one")
	c := b.containerd(t)
	c.proxy = "devmapper"
	err := c.admit(t.Context())
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, `named "devmapper", but the 2 snapshots are those of plugin "thinsnap"`)
	c.proxy = "thinsnap"
	require.NoError(t, c.admit(t.Context()))
}

// The containerd whose snapshots were adopted may remove them once it has told its UUID, and
// continues with its numbers.
func TestAdoptedByTheSameContainerd(t *testing.T) {
	b := newAdoptedBench(t)
	b.waits(0)
	answer := b.answers()
	c := b.containerd(t)
	sn := c.sn(t)
	requireRefused(t, sn.Remove(t.Context(), "default/2/box"), "does not know yet")
	keys := []string{"default/1/layer", "default/2/box"}
	b.listed.Store(&keys)
	answer <- "one"
	require.Eventually(t, func() bool { return clients.HasListed(b.Registry) }, time.Minute, time.Millisecond)
	c.prepare(t, "default/3/box", "default/1/layer")
	require.NoError(t, sn.Remove(t.Context(), "default/3/box"))
	require.NoError(t, sn.Remove(t.Context(), "default/2/box"))
	require.NoError(t, sn.Remove(t.Context(), "default/1/layer"))
}

// A containerd whose data was wiped removes no adopted snapshot.
func TestAdoptedByAnotherContainerd(t *testing.T) {
	b := newAdoptedBench(t)
	b.knows("two")
	c := b.containerd(t)
	sn := c.sn(t)
	b.await(t, "two")
	for _, key := range []string{"default/2/box", "default/1/layer"} {
		requireRefused(t, sn.Remove(t.Context(), key), "is kept")
	}
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, state.Kept)
}
