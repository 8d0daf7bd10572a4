package snapshotter

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// hangingPool blocks in Volumes until the test releases it.
type hangingPool struct {
	Pool
	asked, let chan struct{}
}

func (p *hangingPool) Volumes(context.Context, thin.ID, thin.ID) (map[thin.ID]bool, error) {
	close(p.asked)
	<-p.let
	return map[thin.ID]bool{5: true, 6: false}, nil
}

// TestOthersDoNotWaitForLeftovers: the deletion of another volume does not wait for a hanging read, and
// neither does a caller whose context ends.
func TestOthersDoNotWaitForLeftovers(t *testing.T) {
	p := &hangingPool{asked: make(chan struct{}), let: make(chan struct{})}
	l := &leftovers{pool: p}
	l.add(metadata.LeaseRecord{First: 1, Last: 64})
	found := make(chan leftoverKind)
	go func() {
		of, err := l.kindOf(t.Context(), 5)
		if err != nil {
			t.Error(err)
		}
		found <- of
	}()
	<-p.asked
	of, err := l.kindOf(t.Context(), 65)
	require.NoError(t, err)
	require.Equal(t, volumeOfThisRun, of)
	l.noteDeleted(65)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.kindOf(ended, 6)
	require.ErrorIs(t, err, context.Canceled)

	close(p.let)
	require.Equal(t, volumeOfClient, <-found)
	for id, want := range map[thin.ID]leftoverKind{4: volumeAbsent, 5: volumeOfClient, 6: volumeBroken, 65: volumeOfThisRun} {
		of, err := l.kindOf(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, want, of)
	}
	l.noteDeleted(5)
	of, err = l.kindOf(t.Context(), 5)
	require.NoError(t, err)
	require.Equal(t, volumeAbsent, of)
}
