package daemon

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestNoRepairWithDamagedStore: a repair rebuilds the indexes, but does nothing that relies on
// damaged records.
func TestNoRepairWithDamagedStore(t *testing.T) {
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	require.NoError(t, rootdir.Prepare(c.Root))
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		lease, err := tx.Lease(64)
		if err != nil {
			return err
		}
		return tx.Create(metadata.Snapshot{Key: "box", Kind: snapshots.KindActive, VolumeID: lease.First, Size: 1 << 20, Filesystem: "ext4"})
	}))
	require.NoError(t, store.Close())
	db, err := bolt.Open(rootdir.Store(c.Root), 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		root := tx.Bucket([]byte("v1"))
		if err := root.Bucket([]byte("meta")).Delete([]byte("counters")); err != nil {
			return err
		}
		return root.Bucket([]byte("snapshots")).Put([]byte("look"), []byte{99})
	}))
	require.NoError(t, db.Close())

	before, err := CheckRoot(t.Context(), c, false)
	require.NoError(t, err)
	require.Len(t, before.Findings, 3, "one says that the rest was not checked")
	_, err = CheckRoot(t.Context(), c, true)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, `snapshot "look"`)
	require.NotContains(t, err.Error(), "cannot start on this root")
	after, err := CheckRoot(t.Context(), c, false)
	require.NoError(t, err)
	require.Len(t, after.Findings, 2)
	require.Equal(t, check.KindStore, after.Findings[0].Kind)
	require.Equal(t, `snapshot "look"`, after.Findings[0].Subject)
}
