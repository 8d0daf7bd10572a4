package snapshotter_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// TestPoolThatGrowsInSmallSteps: a fast writer fills each extension of the pool before the next check,
// which sees a full pool again. Each extension restarts the kernel's no_space_timeout.
func TestPoolThatGrowsInSmallSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := fakeConfig()
		config.MinFreePercent = 0
		b := newBench(t, config)
		b.layer(t, "layer", "", "content")
		b.prepare(t, "a", "layer")
		time.Sleep(time.Minute + watchStep/2) // waits for spares, and ends between two checks
		for range 40 {
			b.pool.SetStatus(func(s *pool.Status) {
				s.Mode, s.NoSpaceTimeout = thin.ModeReadWrite, time.Minute
				s.Data.Total += 64 << 20
			})
			time.Sleep(watchStep / 10)
			b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.Data.Used = thin.ModeOutOfDataSpace, s.Data.Total })
			time.Sleep(2*watchStep - watchStep/10)
		}
		b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.Data.Total = thin.ModeReadWrite, s.Data.Total+(4<<30) })
		require.NoError(t, b.Commit(t.Context(), "done", "a"))
	})
}

// watchStep is the time between two checks of the pool; in this test they are at whole seconds.
const watchStep = time.Second

// rememberingPool remembers its status as pool.Pool does.
type rememberingPool struct {
	*fakepool.Pool
	mu   sync.Mutex
	last pool.Status
}

func (p *rememberingPool) Status(ctx context.Context) (pool.Status, error) {
	return p.RecentStatus(ctx, 0)
}

func (p *rememberingPool) RecentStatus(ctx context.Context, age time.Duration) (pool.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.age() < age {
		return p.last, nil
	}
	var err error
	p.last, err = p.Pool.Status(ctx)
	return p.last, err
}

func (p *rememberingPool) age() time.Duration { return time.Since(p.last.Asked) }

// awaitLook returns a quarter of a second after a status query.
func (p *rememberingPool) awaitLook() {
	for asked := false; !asked; {
		time.Sleep(watchStep / 4)
		p.mu.Lock()
		asked = p.age() <= watchStep/4
		p.mu.Unlock()
	}
}

// TestFullPoolThatIsSeenLate: a pool fills up soon after a check. It fails writes only for a moment, and
// then has space.
func TestFullPoolThatIsSeenLate(t *testing.T) {
	for name, c := range map[string]struct {
		free uint64
		full time.Duration
		lost bool
	}{
		"little room":                   {3 << 30, time.Minute, true},
		"little room, but in time":      {3 << 30, 50 * time.Second, false},
		"much room, and a fast writer":  {1 << 40, time.Minute, true},
		"much room, but in time":        {1 << 40, 20 * time.Second, false},
		"much room, but without limits": {1 << 40, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := fakeConfig()
				config.MinFreePercent = 0
				b := newBench(t, config)
				b.pool.SetStatus(func(s *pool.Status) {
					s.Data.Total = s.Data.Used + c.free
					if c.full > 0 {
						s.NoSpaceTimeout = time.Minute
					}
				})
				require.NoError(t, b.Close())
				b.openStore(t)
				p := &rememberingPool{Pool: b.pool}
				var err error
				b.Snapshotter, err = snapshotter.New(t.Context(), config, b.store, p, b.pool)
				require.NoError(t, err)
				b.layer(t, "layer", "", "content")
				b.prepare(t, "a", "layer")
				time.Sleep(2 * time.Minute) // waits for spares
				p.awaitLook()
				b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.Data.Used = thin.ModeOutOfDataSpace, s.Data.Total })
				if c.full == 0 {
					time.Sleep(time.Hour)
				}
				time.Sleep(c.full + watchStep/10)
				if c.lost {
					b.pool.SetStatus(func(s *pool.Status) { s.QueueIfNoSpace = false })
					time.Sleep(watchStep / 4) // without a check
				}
				b.pool.SetStatus(func(s *pool.Status) {
					s.QueueIfNoSpace, s.Mode, s.Data.Total = true, thin.ModeReadWrite, s.Data.Total+(4<<30)
				})
				err = b.Commit(t.Context(), "done", "a")
				if c.lost {
					require.ErrorIs(t, err, errdefs.ErrDataLoss)
				} else {
					require.NoError(t, err)
				}
			})
		})
	}
}

// TestCommitRightAfterAPoolFailed: a pool with error_if_no_space fills up during the unmount before the
// Commit, after the last check.
func TestCommitRightAfterAPoolFailed(t *testing.T) {
	for _, queues := range []bool{false, true} {
		t.Run(fmt.Sprintf("queues writes: %v", queues), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := fakeConfig()
				config.MinFreePercent, config.Spares = 0, 0
				b := newBench(t, config)
				b.pool.SetStatus(func(s *pool.Status) { s.QueueIfNoSpace = queues })
				require.NoError(t, b.Close())
				b.openStore(t)
				p := &rememberingPool{Pool: b.pool}
				var err error
				b.Snapshotter, err = snapshotter.New(t.Context(), config, b.store, p, b.pool)
				require.NoError(t, err)
				b.prepare(t, "a", "")
				time.Sleep(time.Minute)
				_, err = p.Status(t.Context())
				require.NoError(t, err)
				b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.Data.Used = thin.ModeOutOfDataSpace, s.Data.Total })
				time.Sleep(watchStep / 10)
				err = b.Commit(t.Context(), "done", "a")
				if queues {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, errdefs.ErrDataLoss)
				}
			})
		})
	}
}
