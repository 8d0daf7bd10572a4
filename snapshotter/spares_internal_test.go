package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// fakeVolumes creates spares slowly, and records which exist.
type fakeVolumes struct {
	mu    sync.Mutex
	next  thin.ID
	alive map[thin.ID]thin.ID // their origins
	most  int
	err   error
}

const createTime, removalTime = 20 * time.Millisecond, 50 * time.Millisecond

func newFakeVolumes(t *testing.T, most int) (*fakeVolumes, *spares) {
	t.Helper()
	n := &fakeVolumes{alive: map[thin.ID]thin.ID{}}
	p := newSpares(most, n.create, n.remove)
	t.Cleanup(func() {
		p.stop()
		require.Zero(t, p.status().Present)
	})
	return n, p
}

func (n *fakeVolumes) create(_ context.Context, from origin) (thin.ID, string, error) {
	time.Sleep(createTime)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return 0, "", n.err
	}
	n.next++
	n.alive[n.next] = from.volume
	n.most = max(n.most, len(n.alive))
	return n.next, fmt.Sprint(n.next), nil
}

func (n *fakeVolumes) remove(_ context.Context, id thin.ID) {
	time.Sleep(removalTime)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.alive, id)
}

func (n *fakeVolumes) of(id thin.ID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, from := range n.alive {
		if from == id {
			count++
		}
	}
	return count
}

func (n *fakeVolumes) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.alive)
}

func (n *fakeVolumes) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

func (n *fakeVolumes) takeSpare(t *testing.T, p *spares, from origin) (ok bool) {
	t.Helper()
	id, path, ok := p.take(t.Context(), from)
	if ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		require.Equal(t, from.volume, n.alive[id])
		require.Equal(t, fmt.Sprint(id), path)
		delete(n.alive, id)
	}
	return ok
}

const layerID thin.ID = 1000

func layer() origin { return origin{volume: layerID} }

func TestSpareOfALayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		p.expect(layer())
		time.Sleep(createTime / 2)
		start := time.Now()
		require.True(t, n.takeSpare(t, p, layer()), "the spare that is being created")
		require.Equal(t, createTime/2, time.Since(start))
		time.Sleep(time.Second)
		require.Zero(t, n.of(layerID), "most layers have one child")

		require.False(t, n.takeSpare(t, p, layer()))
		time.Sleep(time.Second)
		require.Equal(t, 2, n.of(layerID), "containers are created from this image")
		require.Equal(t, SpareCounts{Present: 2, Taken: 1, Missed: 1}, p.status())
	})
}

func TestSparesGrowWithDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 100)
		for range 3 {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() { n.takeSpare(t, p, layer()) })
			}
			all.Wait()
			time.Sleep(time.Second)
		}
		require.Equal(t, sparesPerOrigin, n.of(layerID))
		// Callers that come one at a time always find one, and no more are made.
		before := p.status()
		for range 20 {
			require.True(t, n.takeSpare(t, p, layer()))
			time.Sleep(createTime)
		}
		require.Equal(t, before.Taken+20, p.status().Taken)
		time.Sleep(time.Second)
		require.Equal(t, sparesPerOrigin, n.of(layerID))
	})
}

func TestSparesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 3)
		for i := range thin.ID(10) {
			p.expect(origin{volume: 1 + i})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.LessOrEqual(t, n.most, 4, "one is being deleted for another")
		require.Equal(t, []int{0, 1, 1, 1}, []int{n.of(7), n.of(8), n.of(9), n.of(10)}, "those used last")
	})
}

func TestSparesGoWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		p.expect(layer())
		time.Sleep(sparesIdle - time.Second)
		require.Equal(t, 1, n.of(layerID))
		p.expect(layer())
		time.Sleep(sparesIdle - time.Second)
		require.Equal(t, 1, n.of(layerID))
		time.Sleep(2 * time.Second)
		require.Zero(t, n.of(layerID))
		synctest.Wait()
		require.Empty(t, p.origins)
	})
}

func TestSparesGoUnderPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		p.expect(layer())
		p.expect(origin{volume: 1})
		time.Sleep(time.Second)
		p.dropAll()
		time.Sleep(time.Second)
		require.Zero(t, n.count())
		p.expect(layer())
		time.Sleep(time.Second)
		require.Equal(t, 1, n.of(layerID))
	})
}

func TestSpareThatCannotBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		n.fail(errors.New("not today"))
		p.expect(layer())
		require.False(t, n.takeSpare(t, p, layer()))
		time.Sleep(time.Second)
		require.Zero(t, p.status().Present)
	})
}

func TestSpareIsNotLostWithItsTaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		p.expect(layer())
		ctx, cancel := context.WithTimeout(t.Context(), createTime/2)
		defer cancel()
		_, _, ok := p.take(ctx, layer())
		require.False(t, ok)
		time.Sleep(time.Second)
		require.Zero(t, n.count())
	})
}

func TestRetireWaitsForSpares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 1)
		p.expect(layer())
		time.Sleep(createTime / 2)
		// It is dropped while it is still being created.
		p.expect(origin{volume: 1})
		require.NoError(t, p.retire(t.Context(), layerID))
		require.Zero(t, n.of(layerID))
		require.NoError(t, p.retire(t.Context(), layerID))

		p.expect(origin{volume: 1})
		ctx, cancel := context.WithTimeout(t.Context(), createTime/2)
		defer cancel()
		require.ErrorIs(t, p.retire(ctx, 1), context.DeadlineExceeded)
		time.Sleep(time.Second)
		require.Zero(t, n.count())
	})
}

func TestStopDeletesSpares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		for i := range thin.ID(8) {
			p.expect(origin{volume: 1 + i})
		}
		time.Sleep(createTime / 2)
		start := time.Now()
		p.stop()
		require.Equal(t, createTime/2+removalTime, time.Since(start), "concurrently, not one after another")
		require.Zero(t, n.count())
		p.expect(layer())
		require.False(t, n.takeSpare(t, p, layer()))
		require.Zero(t, p.status().Present)
	})
}

// An origin is removed while Close deletes its spares.
func TestRetireWaitsWhileSparesStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 8)
		p.expect(layer())
		time.Sleep(createTime)
		var stop sync.WaitGroup
		defer stop.Wait()
		stop.Go(p.stop)
		synctest.Wait()
		require.NoError(t, p.retire(t.Context(), layerID))
		require.Zero(t, n.of(layerID))
	})
}

func TestNoSpares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, p := newFakeVolumes(t, 0)
		p.expect(layer())
		require.False(t, n.takeSpare(t, p, layer()))
		time.Sleep(time.Second)
		require.Zero(t, n.next)
		require.Equal(t, SpareCounts{Missed: 1}, p.status())
	})
}
