package snapshotter

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestRemovalWhileSettling: if a snapshot is removed while its volume is being settled, the volume is
// settled again.
func TestRemovalWhileSettling(t *testing.T) {
	started, goOn := make(chan struct{}, 1), make(chan struct{}, 1)
	var rounds atomic.Int32
	r := newReaper(func(context.Context, thin.ID, bool) error {
		started <- struct{}{}
		<-goOn
		rounds.Add(1)
		return nil
	})
	defer r.stop()

	r.add(1, false)
	<-started
	r.addLater(1)
	r.mu.Lock()
	ended := r.roundEnded
	r.mu.Unlock()
	goOn <- struct{}{}
	<-ended

	goOn <- struct{}{} // for the second round, which drain waits for
	require.NoError(t, r.drain(t.Context()))
	require.EqualValues(t, 2, rounds.Load())
}
