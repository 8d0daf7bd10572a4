package snapshotter_test

import (
	"context"
	"runtime"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// TestWalkKeepsLittle: labels come from images, so they must not determine the memory of a list.
func TestWalkKeepsLittle(t *testing.T) {
	b := newBench(t, fakeConfig())
	const count, labelBytes = 40, 1000 << 10
	for i := range count {
		_, err := b.Prepare(t.Context(), strconv.Itoa(i), "", snapshots.WithLabels(manyLabels(10, labelBytes/10)))
		require.NoError(t, err)
	}
	live := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before, seen := live(), 0
	require.NoError(t, b.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		require.Len(t, info.Labels, 10)
		if seen++; seen == 1 {
			require.Less(t, int64(live())-int64(before), int64(count*labelBytes/2))
		}
		return nil
	}))
	require.Equal(t, count, seen)
}

// TestWalkOfOneMoment: a page of records is read in one transaction, and so is consistent.
func TestWalkOfOneMoment(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "")
	var keys []string
	require.NoError(t, b.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		if len(keys) == 0 {
			b.prepare(t, "b", "")
		}
		keys = append(keys, info.Name)
		return nil
	}))
	require.Equal(t, []string{"a"}, keys)
}
