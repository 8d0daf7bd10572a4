package snapshotter_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestOneDiscardAtATime: of two at a time neither gives back what both volumes map.
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
