package bench

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
)

// benchPairs counts how many snapshots a second are made and removed again, while more and more clients do so.
func benchPairs(s *suite) {
	s.unpackParents()
	for _, workers := range []int{1, 8, 64} {
		asked := fmt.Sprintf("Prepare and Remove, %d workers", workers)
		drained := asked + ", drained"
		s.fromFloor(drained, "/s", floorPairs(workers))
		s.inTurn(3, func(t *target) {
			pairs := 70
			if t.slow {
				pairs = max(20, workers)
			}
			start := time.Now()
			require.NoError(s.b, share(pairs, workers, func() error {
				key := s.key()
				if _, err := t.Prepare(s.ctx, key, t.parent, keep); err != nil {
					return err
				}
				return t.Remove(s.ctx, key)
			}))
			s.report.Add(s.group, asked, "/s", t.name, float64(pairs)/time.Since(start).Seconds())
			s.drain()
			s.report.Add(s.group, drained, "/s", t.name, float64(pairs)/time.Since(start).Seconds())
		})
	}
}

// benchBurst has many containers of one image begin at once.
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
			if n < size && part.at > 0 {
				value, mark = value*size/float64(n), "*"
				s.report.Note("* scaled from %d Prepares at once", n)
			}
			row := fmt.Sprintf("%d Prepares at once, %s", size, part.row)
			s.report.Add(s.group, row, "ms", t.name, value).Mark = mark
		}
		s.end()
	})
}

// burst begins n Prepares at the same time and says when they were done, in milliseconds, in that order.
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
