package snapshotter

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
)

// TestHowOftenThePoolIsWatched: an old status is used only where it takes long until a write can fail.
func TestHowOftenThePoolIsWatched(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*pool.Status)
		next   time.Duration
	}{
		"roomy":              {func(*pool.Status) {}, roomyAge},
		"little room":        {func(s *pool.Status) { s.Data.Used = s.Data.Total - fillRate/2 }, watchStep / 2},
		"full in 5 seconds":  {func(s *pool.Status) { s.Data.Used = s.Data.Total - 5*fillRate }, 5 * time.Second},
		"full":               {func(s *pool.Status) { s.Data.Used = s.Data.Total }, watchStep / 2},
		"fails them soon":    {func(s *pool.Status) { s.NoSpaceTimeout = 10 * time.Second }, 5 * time.Second},
		"fails them later":   {func(s *pool.Status) { s.NoSpaceTimeout = time.Hour }, roomyAge},
		"fails them sooner":  {func(s *pool.Status) { s.NoSpaceTimeout = time.Second }, watchStep / 2},
		"fails them at once": {func(s *pool.Status) { s.QueueIfNoSpace = false }, watchStep / 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := fakepool.New(1 << 40)
			p.SetStatus(c.change)
			s := &Snapshotter{pool: p, volumes: newVolumes(p)}
			next, err := s.detectLostWrites(t.Context(), watchStep)
			require.NoError(t, err)
			require.Equal(t, c.next, next)
		})
	}
}

// TestVolumeCreatedWhileThePoolRecovers: such a volume has lost nothing.
func TestVolumeCreatedWhileThePoolRecovers(t *testing.T) {
	for name, recovers := range map[string]bool{"the pool recovers": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			p := fakepool.New(100 << 30)
			s := &Snapshotter{pool: p, volumes: newVolumes(p)}
			create := func(id thin.ID) {
				require.NoError(t, p.CreateThin(t.Context(), id))
				_, err := p.Activate(t.Context(), id, 64<<20, false)
				require.NoError(t, err)
				s.volumes.noteCreated(id)
			}
			create(1)
			p.SetStatus(func(s *pool.Status) { s.QueueIfNoSpace, s.Mode = false, thin.ModeOutOfDataSpace })
			var once sync.Once
			p.SetFault(func(method string, _ thin.ID) error {
				if method != "Active" {
					return nil
				}
				once.Do(func() {
					if recovers {
						p.SetStatus(func(s *pool.Status) { s.QueueIfNoSpace, s.Mode = true, thin.ModeReadWrite })
					}
					create(2)
				})
				return nil
			})
			_, err := s.detectLostWrites(t.Context(), watchStep)
			require.NoError(t, err)
			require.True(t, s.volumes.hasWritesLost(1))
			require.Equal(t, !recovers, s.volumes.hasWritesLost(2))
		})
	}
}
