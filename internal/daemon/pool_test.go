package daemon

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestRecordedPool: the record comes from the store, and reading it changes nothing.
func TestRecordedPool(t *testing.T) {
	c := config.Default()
	c.Root = t.TempDir()
	c.Pool.Mode, c.Pool.Existing.Device = config.ModeExisting, "vg/pool"
	_, err := RecordedPool(t.Context(), c)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoFileExists(t, rootdir.Store(c.Root))

	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Close())
	rec, err := RecordedPool(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, metadata.PoolRecord{}, rec, "a store without a pool")

	store, err = metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "p", Mode: config.ModeLoop, Name: "made"})
	}))
	require.NoError(t, store.Close())
	before, err := os.ReadFile(rootdir.Store(c.Root))
	require.NoError(t, err)
	rec, err = RecordedPool(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, config.ModeLoop, rec.Mode)
	require.Equal(t, "made", rec.Name)
	after, err := os.ReadFile(rootdir.Store(c.Root))
	require.NoError(t, err)
	require.Equal(t, before, after)
}
