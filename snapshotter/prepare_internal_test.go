package snapshotter

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestPanicWhileARecordIsStored: Prepare stores its record on another goroutine. A panic there becomes one
// of the operation, and the volume is settled.
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
		// The store is nil.
		_, _ = s.recordAndActivate(t.Context(), metadata.Snapshot{Key: "a", VolumeID: 7, Size: 1 << 20}, origin{}, "")
	})
	require.Equal(t, thin.ID(7), <-settled)
	unlock, err := s.volumes.locks.lock(t.Context(), 7)
	require.NoError(t, err)
	unlock()
}
