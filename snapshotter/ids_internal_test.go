package snapshotter

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestDisownAgain: an id that the store could not disown is retried until it succeeds, and then keeps no
// lease open.
func TestDisownAgain(t *testing.T) {
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	defer store.Close()
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "fake", Mode: metadata.ModeLoop, Name: "fake", BlockSize: 64 << 10, Complete: true})
	}))
	s := newIDSource(store, fakepool.New(1<<30))
	defer s.stop()
	var ids []thin.ID
	for range leaseIDs {
		id, err := s.take(t.Context())
		require.NoError(t, err)
		ids = append(ids, id)
	}
	foreign := ids[2]
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.disown(ended, foreign), context.Canceled)
	require.True(t, s.isForeign(foreign))
	for _, id := range ids {
		if id != foreign {
			s.resolve(id)
		}
	}
	s.done.Wait()
	require.Empty(t, s.closable())
	require.NoError(t, s.disown(t.Context(), foreign))
	require.NoError(t, s.disown(t.Context(), foreign))
	require.False(t, s.isForeign(foreign))
	require.Equal(t, []uint32{uint32(ids[0]), uint32(foreign) + 1}, s.closable())
	_, err = s.takeLease(t.Context(), false)
	require.NoError(t, err)
	require.Empty(t, s.closable())
	require.NoError(t, store.View(t.Context(), func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		for _, l := range leases {
			require.Greater(t, l.First, uint32(foreign))
		}
		return err
	}))
}
