package snapshotter_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// TestOneDiscardAtATime: two concurrent discards would not free the blocks that both volumes map.
func TestOneDiscardAtATime(t *testing.T) {
	b := newBench(t, fakeConfig())
	const boxes = 20
	for i := range boxes {
		b.prepare(t, fmt.Sprint("box", i), "")
	}
	var running, discards, most atomic.Int32
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "Discard" {
			discards.Add(1)
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(time.Millisecond)
			running.Add(-1)
		}
		return nil
	})
	for i := range boxes {
		require.NoError(t, b.Remove(t.Context(), fmt.Sprint("box", i)))
	}
	b.requireNoLeftovers(t)
	require.EqualValues(t, boxes, discards.Load())
	require.EqualValues(t, 1, most.Load())
}

// discardLarge removes large snapshots, and returns during the discard of their volumes. Each piece takes
// pieceTime.
func (b *bench) discardLarge(t *testing.T) {
	t.Helper()
	const boxes = 8 // all workers of the reaper
	for i := range boxes {
		b.prepare(t, fmt.Sprint("large", i), "", ofPieces(10_000))
	}
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "Discard" {
			time.Sleep(pieceTime)
		}
		return nil
	})
	for i := range boxes {
		require.NoError(t, b.Remove(t.Context(), fmt.Sprint("large", i)))
	}
	time.Sleep(time.Minute)
	require.EqualValues(t, boxes, b.background(t).Running)
}

const pieceTime = 100 * time.Millisecond

// ofPieces sets a size that takes a discard of n pieces.
func ofPieces(n uint64) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshotter.LabelSize: fmt.Sprint(n * (128 << 20))})
}

// TestCopiesDoNotWaitForLargeDiscards: the discard of a large volume takes minutes. Copies are deleted
// meanwhile, because their number is limited.
func TestCopiesDoNotWaitForLargeDiscards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := fakeConfig()
		config.MaxBytes = 1 << 50
		b := newBench(t, config)
		b.prepare(t, "a", "")
		frozen := b.freeze(t, "a")
		b.discardLarge(t)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		frozen.Release(ctx)
		require.NotContains(t, b.pool.IDs(), frozen.ID)
	})
}

// TestStopDeletesCopiesDuringLargeDiscards: the next start would keep them in a foreign pool.
func TestStopDeletesCopiesDuringLargeDiscards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := fakeConfig()
		config.MaxBytes = 1 << 50
		b := newBench(t, config)
		b.prepare(t, "a", "", ofPieces(20))
		copies := []*snapshotter.Frozen{b.freeze(t, "a"), b.freeze(t, "a"), b.freeze(t, "a")}
		b.discardLarge(t)
		require.NoError(t, b.Close())
		for _, copied := range copies {
			require.NotContains(t, b.pool.IDs(), copied.ID)
		}
	})
}

// TestCopyThatIsOpenedBeforeItsDiscard: a copy that is opened while its discard waits for its turn keeps
// its content.
func TestCopyThatIsOpenedBeforeItsDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, fakeConfig())
		dev := b.prepare(t, "a", "")
		require.NoError(t, b.pool.Write(dev, "content"))
		frozen := b.freeze(t, "a")
		b.prepare(t, "b", "")
		release := b.block("Discard", thin.ModeReadWrite)
		defer release()
		require.NoError(t, b.Remove(t.Context(), "b"))
		time.Sleep(time.Minute)
		released := make(chan struct{})
		go func() {
			defer close(released)
			frozen.Release(t.Context())
		}()
		synctest.Wait()
		require.NoError(t, b.pool.Open(frozen.Path, 1))
		release()
		<-released
		b.requireFrozen(t, frozen, "content")
		require.NoError(t, b.pool.Open(frozen.Path, -1))
		b.requireNoLeftovers(t)
	})
}
