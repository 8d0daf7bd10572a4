package bench

import (
	"fmt"
	"time"

	"github.com/stretchr/testify/require"
)

// benchChain makes a chain of as many layers as an image can have. They stay, because their removal takes slow
// snapshotters minutes.
func benchChain(s *suite) {
	const layers = 128
	s.inTurn(1, func(t *target) {
		parent := ""
		start := time.Now()
		for range layers {
			key, layer := s.key(), s.key()
			_, err := t.Prepare(s.ctx, key, parent, keep)
			require.NoError(s.b, err)
			require.NoError(s.b, t.Commit(s.ctx, layer, key, keep))
			parent = layer
		}
		s.report.Add(s.group, fmt.Sprintf("Prepare and Commit of %d layers", layers), "s", t.name, time.Since(start).Seconds())
		key, _ := s.prepare(t, parent)
		for range 5 {
			s.time("Mounts of a container on them", t.name, func() error {
				_, err := t.Mounts(s.ctx, key)
				return err
			})
		}
	})
}
