package daemon

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestExistingPoolWhoseIDsAreUsedAgain: after the last id, the ids of removed snapshots are used again,
// and none with which the pool's owner made a volume meanwhile.
func TestExistingPoolWhoseIDsAreUsedAgain(t *testing.T) {
	h := newHandmade(t, "a-uuid")
	c := inPool(t, "/dev/mapper/by-hand")
	c.Spares.Most = 0
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	layers(t, d, "layer")
	box := func(i int) {
		_, err := d.snapshotter.Prepare(t.Context(), "box", "layer")
		require.NoError(t, err, i)
		require.NoError(t, d.snapshotter.Remove(t.Context(), "box"))
	}
	box(0)
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
	ours := h.ids(t)[1:]
	require.NoError(t, d.Close())

	db, err := bolt.Open(filepath.Join(c.Root, "metadata.db"), 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("v1")).Bucket([]byte("meta")).Put([]byte("next"), []byte{0, 0xff, 0xff, 0xff})
	}))
	require.NoError(t, db.Close())
	const taken = metadata.FirstInForeign + 90 // in no open lease
	require.NoError(t, h.pool().CreateThin(taken))
	d, err = Open(t.Context(), c)
	require.NoError(t, err)
	for i := range 80 {
		box(i)
	}
	_, err = d.snapshotter.Prepare(t.Context(), "stays", "layer")
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
	var id thin.ID
	require.NoError(t, d.store.View(t.Context(), func(tx *metadata.Tx) error {
		rec, err := tx.Get("stays")
		id = thin.ID(rec.VolumeID)
		return err
	}))
	require.Less(t, id, thin.ID(metadata.FirstInForeign+1000), "used again")
	require.Contains(t, h.ids(t), thin.ID(taken))
	require.Len(t, h.ids(t), len(ours)+3, fmt.Sprint(h.ids(t)))
	require.NoError(t, d.Close())
	deactivateOurs(t, h.control, c.Pool.Name)
}
