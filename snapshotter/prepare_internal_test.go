package snapshotter

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestPanicWhileARecordIsStored: the record of a Prepare is stored on a goroutine of its own. A panic
// there is one of the operation, and its volume is settled.
func TestPanicWhileARecordIsStored(t *testing.T) {
	p := fakepool.New(1 << 30)
	require.NoError(t, p.CreateThin(t.Context(), 7))
	settled := make(chan thin.ID, 1)
	s := &Snapshotter{pool: p, volumes: newVolumes(p), ids: newIDSource(nil, p)}
	s.reaper = newReaper(func(_ context.Context, id thin.ID, _ bool) error {
		settled <- id
		return nil
	})
	defer s.reaper.stop()
	require.Panics(t, func() {
		// There is no store.
		_, _ = s.recordAndActivate(t.Context(), metadata.Snapshot{Key: "a", VolumeID: 7, Size: 1 << 20}, origin{}, "")
	})
	require.Equal(t, thin.ID(7), <-settled)
	unlock, err := s.volumes.locks.lock(t.Context(), 7)
	require.NoError(t, err)
	unlock()
}
