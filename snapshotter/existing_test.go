package snapshotter_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// newExistingBench is a bench on a foreign pool with volume 1. The snapshotter is not started.
func newExistingBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{pool: fakepool.New(4 << 30), path: filepath.Join(t.TempDir(), "metadata.db"), config: fakeConfig()}
	b.pool.SetStatus(func(s *pool.Status) { s.TransactionID = 41 })
	require.NoError(t, b.pool.CreateThin(t.Context(), 1))
	b.openStore(t)
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "fake", Mode: metadata.ModeExisting, Name: "fake", BlockSize: 64 << 10, Complete: true})
	}))
	return b
}

func (b *bench) requireAsItWas(t *testing.T) {
	t.Helper()
	status, err := b.pool.Status(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 41, status.TransactionID)
	require.Contains(t, b.pool.IDs(), thin.ID(1))
}

func TestExistingPoolIsLeftAsItIs(t *testing.T) {
	b := newExistingBench(t)
	require.NoError(t, b.start(t))
	b.layer(t, "one", "", "content")
	b.restart(t, true)
	for range 100 { // more than a lease has
		b.prepare(t, "box", "one")
		require.NoError(t, b.Remove(t.Context(), "box"))
	}
	require.Equal(t, "content", b.content(t, "one"))
	require.NoError(t, b.Cleanup(t.Context()))
	for id := range b.pool.IDs() {
		require.True(t, id == 1 || id >= metadata.FirstInForeign, id)
	}
	b.requireAsItWas(t)
	require.NoError(t, b.Close())
}

// TestNothingIsDeletedFromAPoolThatIsNotProven: without a UUID and a base volume, another pool of the same
// name cannot be distinguished.
func TestNothingIsDeletedFromAPoolThatIsNotProven(t *testing.T) {
	for _, uuid := range []string{"", "LVM-x-tpool"} {
		b := newExistingBench(t)
		const left = metadata.FirstInForeign + 3
		require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
			rec, err := tx.Pool()
			require.NoError(t, err)
			rec.Existing.UUID = uuid
			require.NoError(t, tx.SetPool(rec))
			_, err = tx.Lease(64)
			return err
		}))
		require.NoError(t, b.pool.CreateThin(t.Context(), left))
		require.NoError(t, b.start(t))
		require.NoError(t, b.Cleanup(t.Context()))
		b.restart(t, false)
		require.NoError(t, b.Cleanup(t.Context()))
		require.Contains(t, b.pool.IDs(), thin.ID(left), "an empty volume may be another user's")
		kept, err := b.Leftovers(t.Context())
		require.NoError(t, err)
		require.Equal(t, uuid != "", len(kept) == 1)
		b.requireAsItWas(t)
		require.NoError(t, b.Close())
	}
}

// TestNothingRemovedIsDeletedWithoutProof: no base volume and no layer proves an adopted pool. Removed
// volumes are then kept, even when a new base volume proves the pool at later starts.
func TestNothingRemovedIsDeletedWithoutProof(t *testing.T) {
	b := newAdoptedBench(t)
	ctx := t.Context()
	require.NoError(t, b.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, key := range []string{"look", "box", "high", "low"} {
			if _, err := tx.Remove(key, time.Now()); err != nil {
				return err
			}
		}
		return nil
	}))
	for range 2 {
		require.NoError(t, b.start(t))
		require.NoError(t, b.Cleanup(ctx))
		kept, err := b.Leftovers(ctx)
		require.NoError(t, err)
		require.Len(t, kept, 5, "also the two that were adopted as leftovers")
		for _, id := range []thin.ID{adoptedLow, adoptedHigh, adoptedBox} {
			require.Contains(t, b.pool.IDs(), id)
		}
		require.EqualValues(t, adoptedBytes, kept[0].Size)
		require.NotZero(t, kept[0].Mapped)
		require.NoError(t, b.Close())
		b.pool.Crash()
		b.openStore(t)
	}
	problems, err := b.store.Check(ctx)
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, b.start(t))
	require.NoError(t, b.RemoveLeftover(ctx, adoptedHigh))
	require.NoError(t, b.Cleanup(ctx))
	require.NotContains(t, b.pool.IDs(), adoptedHigh, "an operator may delete it")
	require.NoError(t, b.Close())
}

// TestVolumesOfOthersWithLeasedIDs: while thinsnap is stopped, another user creates volumes with ids of its
// open lease, one empty and one a snapshot of a foreign volume. Both are kept; thinsnap's own leftovers of
// a crash are deleted.
func TestVolumesOfOthersWithLeasedIDs(t *testing.T) {
	b := newExistingBench(t)
	b.config.Spares = 0
	require.NoError(t, b.start(t))
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Cleanup(t.Context()))
	layer := b.volume(t, "layer")
	next := layer + 5
	require.NoError(t, b.Close())
	b.pool.Crash()
	require.NoError(t, b.pool.CreateThin(t.Context(), next))
	require.NoError(t, b.pool.CreateSnap(t.Context(), next+1, 1))
	require.NoError(t, b.pool.CreateSnap(t.Context(), next+2, layer))
	b.openStore(t)
	require.NoError(t, b.start(t))
	require.NoError(t, b.Cleanup(t.Context()))
	require.Contains(t, b.pool.IDs(), next)
	require.Contains(t, b.pool.IDs(), next+1)
	require.NotContains(t, b.pool.IDs(), next+2, "ours, left by a crash")
	kept, err := b.Leftovers(t.Context())
	require.NoError(t, err)
	require.Len(t, kept, 2)
	require.NoError(t, b.Close())
}

// TestNoLeaseOfIDsThatAreTaken: a foreign volume was created after thinsnap recorded the pool.
func TestNoLeaseOfIDsThatAreTaken(t *testing.T) {
	b := newExistingBench(t)
	const taken = metadata.FirstInForeign + 70
	require.NoError(t, b.pool.CreateThin(t.Context(), taken))
	require.NoError(t, b.start(t))
	var err error
	for err == nil {
		_, err = b.Prepare(t.Context(), "box", "")
		if err == nil {
			require.NoError(t, b.Remove(t.Context(), "box"))
		}
	}
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "(the first is 8388678)")
	require.NoError(t, b.Close())
	b.openStore(t)
	require.NoError(t, b.start(t), "existing snapshots can still be used")
	require.NoError(t, b.Cleanup(t.Context()))
	require.Contains(t, b.pool.IDs(), thin.ID(taken))
	b.requireAsItWas(t)
	require.NoError(t, b.Close())
}
