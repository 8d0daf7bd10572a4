package snapshotter_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// modelTime bounds each part of TestModel.
const modelTime = 4 * time.Second

// TestModel has clients do random operations concurrently. It requires an order that containerd's rules
// explain, and the volume contents of that order.
//
// An operation that fails because of a fault or a cancellation must have changed nothing when it returns;
// only the record of a Prepare may have been seen. Stat, Update, Remove and Walk do not use the pool, so
// only a cancellation makes them fail.
func TestModel(t *testing.T) {
	for _, spares := range []int{0, 4} {
		for _, faults := range []bool{false, true} {
			t.Run(fmt.Sprintf("spares=%d,faults=%v", spares, faults), func(t *testing.T) {
				t.Parallel()
				config := fakeConfig()
				config.Spares = spares
				b := newBench(t, config)
				var rounds int
				for end := time.Now().Add(modelTime); time.Now().Before(end); rounds++ {
					b.modelRound(t, rand.Uint64(), faults)
				}
				t.Logf("%d rounds", rounds)
			})
		}
	}
}

// modelRound is one history: operations, then maybe a crash, then more operations.
func (b *bench) modelRound(t *testing.T, seed uint64, faults bool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	h := &history{}
	for part := range uint64(2) {
		b.pool.SetFault(func(string, thin.ID) error {
			if rand.IntN(3) == 0 {
				time.Sleep(time.Microsecond << rand.IntN(13))
			}
			if faults && rand.IntN(20) == 0 {
				return errInjected
			}
			return nil
		})
		h.run(t, b, b.pool, seed+part, faults)
		b.pool.SetFault(func(string, thin.ID) error { return nil })
		if part == 0 {
			b.restart(t, rand.IntN(2) == 0)
		}
	}
	h.end(t, b, b.pool)
	b.requireNoLeftovers(t)
}
