package bench

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
)

// benchPairs measures the rate at which a growing number of clients make and remove snapshots.
func benchPairs(s *suite) {
	s.unpackParents()
	for _, workers := range []int{1, 8, 64} {
		asked := fmt.Sprintf("Prepare and Remove, workers: %d", workers)
		drained := asked + ", drained"
		s.fromFloor(drained, "/s", floorPairs(workers))
		s.inTurn(3, func(t *target) {
			pairs, mark := 67, ""
			if t.slow {
				pairs = 20
			}
			if pairs < workers {
				mark = "†"
				s.report.Note("† with %d workers", pairs)
			}
			start := time.Now()
			require.NoError(s.b, share(pairs, workers, func() error {
				key := s.key()
				if _, err := t.Prepare(s.ctx, key, t.parent, keep); err != nil {
					return err
				}
				return t.Remove(s.ctx, key)
			}))
			rate := func() float64 { return float64(pairs) / time.Since(start).Seconds() }
			s.report.Add(s.group, asked, "/s", t.name, rate()).Mark = mark
			s.drain()
			s.report.Add(s.group, drained, "/s", t.name, rate()).Mark = mark
		})
	}
}

// benchBurst starts many containers of one image at once.
func benchBurst(s *suite) {
	s.unpackParents()
	const size, slowSize = 100, 20
	s.inTurn(4, func(t *target) {
		n := size
		if t.slow {
			n = slowSize
		}
		took := s.burst(t, n)
		for _, part := range []struct {
			row string
			at  int
		}{{"the first", 0}, {"half of them", n/2 - 1}, {"the last", n - 1}} {
			value, mark := took[part.at], ""
			if part.at > 0 {
				value, mark = value*size/float64(n), s.scaled(n, size)
			}
			row := fmt.Sprintf("%d Prepares at once, %s", size, part.row)
			s.report.Add(s.group, row, "ms", t.name, value).Mark = mark
		}
		s.end()
	})
}

// burst starts n Prepares at the same time and returns the times of their ends in milliseconds, in order.
func (s *suite) burst(t *target, n int) []float64 {
	var (
		mu   sync.Mutex
		took []float64
		keys []string
	)
	for range n {
		keys = append(keys, s.later(t, s.key()))
	}
	next := make(chan string, n)
	for _, key := range keys {
		next <- key
	}
	start := time.Now()
	require.NoError(s.b, share(n, n, func() error {
		_, err := t.Prepare(s.ctx, <-next, t.parent, keep)
		mu.Lock()
		defer mu.Unlock()
		took = append(took, milliseconds(time.Since(start)))
		return err
	}))
	return slices.Sorted(slices.Values(took))
}
