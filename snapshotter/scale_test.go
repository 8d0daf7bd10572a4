package snapshotter_test

import (
	"context"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest/bulk"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// The cost of a start, and the memory of a snapshotter, do not depend on the number of snapshots.
func TestManySnapshots(t *testing.T) {
	few, many := measureStart(t, 1_000), measureStart(t, 20_000)
	require.Equal(t, few.started.Transactions, many.started.Transactions)
	// Background reads may be among them.
	require.InDelta(t, few.started.Reads, many.started.Reads, 4)
	const slack = 64 << 10 // 3 bytes a snapshot
	require.InDelta(t, few.heap, many.heap, slack, "bytes kept after the start")
	require.InDelta(t, few.heapUsed, many.heapUsed, slack, "bytes kept after all snapshots were looked at")
}

type startCost struct {
	started        metadata.Stats
	heap, heapUsed int64 // bytes
}

func measureStart(t *testing.T, n int) startCost {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metadata.db")
	store, err := metadata.Open(path, metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, bulk.Fill(t.Context(), store, n))
	require.NoError(t, store.Close())
	before := heapInUse()

	store, err = metadata.Open(path, metadata.Options{})
	require.NoError(t, err)
	var remembered metadata.PoolRecord
	require.NoError(t, store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		remembered, err = tx.Pool()
		return err
	}))
	p := bulk.NewPool(remembered.TransactionID)
	config := fakeConfig()
	config.BaseBytes = bulk.BaseBytes
	s, err := snapshotter.New(t.Context(), config, store, p, p)
	require.NoError(t, err)
	cost := startCost{started: store.Stats()}
	require.NoError(t, s.Cleanup(t.Context()))
	cost.heap = heapInUse() - before

	seen := 0
	require.NoError(t, s.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		seen++
		_, err := s.Stat(ctx, info.Name)
		return err
	}))
	require.Equal(t, n, seen)
	_, err = s.Stat(t.Context(), bulk.Key(n))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	cost.heapUsed = heapInUse() - before
	require.NoError(t, s.Close())
	return cost
}

// heapInUse returns the reachable bytes: the content of a sync.Pool survives one collection.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
