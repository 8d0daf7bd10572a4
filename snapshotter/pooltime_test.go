package snapshotter_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// TestNoLeaseAtTheEndOfTime: no operation creates a snapshot with a time beyond the limit of a mapping.
func TestNoLeaseAtTheEndOfTime(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.pool.SetTime(thinmeta.MaxTime - 1200)
	var err error
	for made := 0; err == nil; made++ {
		if _, err = b.Prepare(t.Context(), "box", "layer"); err == nil {
			require.NoError(t, b.Remove(t.Context(), "box"))
		}
		require.Less(t, made, 1200)
	}
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorContains(t, err, "docs/pools.md")
	require.Zero(t, b.SnapshotsLeft())
	require.NoError(t, b.Cleanup(t.Context()))
	last, err := b.pool.Time(t.Context())
	require.NoError(t, err)
	require.Less(t, last, uint32(thinmeta.MaxTime))
	require.Equal(t, "content", b.content(t, "layer"))
	require.NoError(t, b.Remove(t.Context(), "layer"))
}

// TestForeignPoolsTimeIsWatched: other users raise the time between two leases. Neither ids of the lease
// nor spares are used then.
func TestForeignPoolsTimeIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newExistingBench(t)
		require.NoError(t, b.start(t))
		b.layer(t, "layer", "", "content")
		b.prepare(t, "box", "layer")
		b.prepare(t, "another", "layer")
		time.Sleep(2 * time.Minute)
		require.Positive(t, b.Spares().Present)
		require.Positive(t, b.SnapshotsLeft())
		b.pool.SetTime(thinmeta.MaxTime - 1<<20)
		time.Sleep(2 * time.Minute)
		require.Zero(t, b.SnapshotsLeft())
		_, err := b.Prepare(t.Context(), "late", "layer")
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		synctest.Wait()
		require.Zero(t, b.Spares().Present)
		require.NoError(t, b.Commit(t.Context(), "image", "box"))

		b.pool.SetTime(2) // it was reset
		time.Sleep(2 * time.Minute)
		b.prepare(t, "late", "image")
		require.NoError(t, b.Close())
	})
}

// TestIDsOfAnImage: an image of n layers takes n ids, and one for a spare of the last layer.
func TestIDsOfAnImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, fakeConfig())
		b.layer(t, "0", "", "0")
		time.Sleep(time.Hour)
		before, err := b.pool.Time(t.Context())
		require.NoError(t, err)
		const layers = 20
		for i := range layers {
			b.layer(t, strconv.Itoa(i+1), strconv.Itoa(i), "content")
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		after, err := b.pool.Time(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, layers+1, after-before)
	})
}
