package snapshotter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
)

// TestHowOftenThePoolIsWatched: what the kernel says may be old only where it takes long until a
// write fails.
func TestHowOftenThePoolIsWatched(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*pool.Status)
		next   time.Duration
	}{
		"roomy":              {func(*pool.Status) {}, roomyAge},
		"little room":        {func(s *pool.Status) { s.Data.Used = s.Data.Total - roomyBytes/2 }, watchStep / 2},
		"fails them at once": {func(s *pool.Status) { s.QueueIfNoSpace = false }, watchStep / 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := fakepool.New(100 << 30)
			p.SetStatus(c.change)
			s := &Snapshotter{pool: p, volumes: newVolumes(p)}
			require.Equal(t, c.next, s.detectLostWrites(t.Context(), watchStep))
		})
	}
}
