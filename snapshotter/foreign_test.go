package snapshotter_test

import (
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

func TestForeignVolumeWithALeasedID(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0 // which would have taken those ids before
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	// Foreign volumes have our next ids.
	next := b.volume(t, "layer") + 1
	for id := next; id < next+5; id++ {
		_ = b.pool.CreateThin(t.Context(), id)
	}
	_, err := b.Prepare(t.Context(), "a", "layer")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.NoError(t, b.Cleanup(t.Context()))
	require.True(t, b.pool.IDs()[next], "not ours to delete")

	// Nor after a restart, if other ids are in the same lease.
	_, err = b.Prepare(t.Context(), "a", "layer")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	b.restart(t, true)
	require.NoError(t, b.Cleanup(t.Context()))
	require.True(t, b.pool.IDs()[next])
	require.True(t, b.pool.IDs()[next+1])
	require.Equal(t, "content", b.content(t, "layer"))
	for i := range 200 { // and leases are closed as ever
		b.prepare(t, fmt.Sprint(i), "layer")
	}
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		require.LessOrEqual(t, len(leases), 3)
		return err
	}))
	require.NoError(t, b.pool.Delete(t.Context(), next))
	require.NoError(t, b.pool.Delete(t.Context(), next+1))
}

// A device that only has the name of ours stays. A volume that is to be discarded first waits for
// it to go.
func TestForeignDeviceWithTheNameOfARemovedVolume(t *testing.T) {
	for _, discard := range []bool{false, true} {
		config := fakeConfig()
		config.Discard = discard
		b := newBench(t, config)
		b.prepare(t, "a", "")
		id := b.volume(t, "a")
		b.pool.TakeName(id, true)
		_, err := b.Mounts(t.Context(), "a")
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.NoError(t, b.Remove(t.Context(), "a"))
		require.NoError(t, b.Cleanup(t.Context()))
		require.Equal(t, discard, b.pool.IDs()[id])
		b.pool.TakeName(id, false)
		b.requireNoLeftovers(t)
	}
}
