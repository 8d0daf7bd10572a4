package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// timeMargin is the distance to thinmeta.MaxTime at which no more ids are leased. It is above the
	// number of ids that are leased and unused.
	timeMargin = 1 << 10
	// timeMarginForeign is timeMargin for a foreign pool, whose other users still create snapshots. At
	// one a second, the operator has twelve days to reset the pool's times.
	timeMarginForeign = 1 << 20
	// timeStep is the time between two reads of a foreign pool's time.
	timeStep = time.Minute
)

// poolTime watches the pool's time, which counts all snapshots ever created in the pool. Each lease
// reads it, which is enough in thinsnap's own pool; in a foreign pool other users raise it too.
type poolTime struct {
	store *metadata.Store
	pool  Pool

	mu     sync.Mutex
	latest uint32
	margin uint32
}

func (t *poolTime) read(ctx context.Context) error {
	rec, err := t.store.Pool(ctx)
	if err != nil {
		return err
	}
	latest, err := t.pool.Time(ctx)
	if err != nil {
		return fmt.Errorf("read the pool's time, the number of its snapshots so far: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.latest, t.margin = latest, timeMargin
	if rec.Foreign() {
		t.margin = timeMarginForeign
	}
	return nil
}

// left returns the number of snapshots until new ones are refused, as of the last read.
func (t *poolTime) left() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return thinmeta.MaxTime - uint64(t.margin) - min(uint64(t.latest), thinmeta.MaxTime-uint64(t.margin))
}

// check returns errdefs.ErrResourceExhausted if the time is within the margin, as of the last read.
func (t *poolTime) check() error {
	if t.left() > 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Errorf("the pool has counted %d snapshots, those of all its users, and the kernel damages its volumes "+
		"after %d: stop all users of the pool and reset its times (docs/pools.md), or use another pool: %w",
		t.latest, thinmeta.MaxTime, errdefs.ErrResourceExhausted)
}

// watch reads the time of a foreign pool until ctx ends. It reads the time of thinsnap's own pool only
// once, because between two leases at most the leased ids raise it.
func (t *poolTime) watch(ctx context.Context) {
	ticker := time.NewTicker(timeStep)
	defer ticker.Stop()
	for {
		if err := t.read(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Warn("cannot watch the pool's time")
		}
		if rec, err := t.store.Pool(ctx); err == nil && !rec.Foreign() {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// SnapshotsLeft returns how many snapshots all users of the pool together can create until new ones are
// refused.
func (s *Snapshotter) SnapshotsLeft() uint64 { return s.ids.time.left() }
