package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// watchStep is the time between two checks whether the pool fails writes.
	watchStep = time.Second
	// roomyAge is the greatest age of the kernel's status for that while the pool has much free space.
	// The free space of the disk below the pool is always current.
	roomyAge = 30 * time.Second
	// fillRate, in bytes a second, is how fast a pool may fill up: more than writers on one disk reach.
	fillRate = 4 << 30
	// heldMargin is how long before the kernel fails the writes that it holds back they count as failed: a
	// look comes every watchStep, and its status is half as old. The rest is for a busy machine.
	heldMargin = 4 * watchStep
	// A disk with less than diskFull bytes free is full: its file system may need that for itself.
	diskFull = 1 << 20
)

// watch runs detectLostWrites every watchStep until ctx ends.
func (s *Snapshotter) watch(ctx context.Context) {
	ticker := time.NewTicker(watchStep)
	defer ticker.Stop()
	age := watchStep / 2
	for {
		select {
		case <-ticker.C:
			next, err := s.detectLostWrites(ctx, age)
			if err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Warn("cannot watch the pool")
			}
			age = next
		case <-ctx.Done():
			return
		}
	}
}

// detectLostWrites records the writable active volumes while the pool fails writes. The kernel
// reports failed writeback only to a process that syncs, which unpacking a layer does not, and it
// leaves no trace. age is the greatest age of the pool's status; next is that of the next call. After
// an error nothing is known.
func (s *Snapshotter) detectLostWrites(ctx context.Context, age time.Duration) (next time.Duration, err error) {
	next = watchStep / 2
	began := time.Now()
	status, err := s.pool.RecentStatus(ctx, age)
	if err != nil {
		return next, fmt.Errorf("tell whether the pool fails writes: %w", err)
	}
	fails := s.full.mayHaveFailed(status) || failsWrites(status)
	if !fails {
		return mayBeOld(status), nil
	}
	active, err := s.pool.Active(ctx)
	if err != nil {
		return next, fmt.Errorf("the pool fails writes, but cannot list the volumes that may lose them: %w", err)
	}
	// The pool may be well again. What was created since then has lost nothing.
	if status, err = s.pool.RecentStatus(ctx, 0); err != nil {
		return next, fmt.Errorf("tell whether the pool fails writes: %w", err)
	}
	recovered := !s.full.mayHaveFailed(status) && !failsWrites(status)
	for _, vol := range active {
		if recovered && s.volumes.wasCreatedAfter(vol.ID, began) {
			continue
		}
		if !vol.ReadOnly && s.volumes.noteWritesLost(vol.ID) {
			log.G(ctx).WithField("device", vol.Path).WithField("pool", status.PoolStatus.String()).
				Warn("the pool fails writes: this volume may lose writes, and cannot be committed any more")
		}
	}
	return next, nil
}

// fullPool remembers since when a pool may hold writes back.
type fullPool struct {
	mu    sync.Mutex
	last  pool.Status // the newest
	since time.Time
}

// mayHaveFailed reports whether the pool holds writes back, and may have done so for about as long as
// the kernel does before it fails them. A pool that gets space then fails them for a moment only,
// which no look may see.
func (f *fullPool) mayHaveFailed(status pool.Status) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !status.Asked.Before(f.last.Asked) {
		f.add(status)
	}
	timeout := f.last.NoSpaceTimeout
	return f.last.Mode == thin.ModeOutOfDataSpace && timeout > 0 && time.Since(f.since) >= timeout-heldMargin
}

// add adds a status. The pool may be full since just after the last one that showed a pool with space,
// or of another size: the kernel's time begins again when the pool is resumed with a larger table.
func (f *fullPool) add(status pool.Status) {
	switch {
	case f.last.Asked.IsZero():
		f.since = status.Asked
	case f.last.Mode != thin.ModeOutOfDataSpace || f.last.Data.Total != status.Data.Total:
		f.since = f.last.Asked
	}
	f.last = status
}

// mayBeOld returns the greatest age of a pool's status at the next look: less than it takes to fill
// the pool, so that it is known when the pool got full; and at most half of the time for which the
// kernel holds writes back before it fails them, so that no pool gets full, fails writes and has
// space again unseen.
func mayBeOld(status pool.Status) time.Duration {
	if !status.QueueIfNoSpace {
		return watchStep / 2
	}
	age := min(roomyAge, time.Duration((status.Data.Total-status.Data.Used)/fillRate)*time.Second)
	if status.NoSpaceTimeout > 0 {
		age = min(age, status.NoSpaceTimeout/2)
	}
	return max(age, watchStep/2)
}

// failsWrites tells whether a write to a new block of a volume may fail.
func failsWrites(status pool.Status) bool {
	switch status.Mode {
	case thin.ModeReadWrite:
		return status.Data.Holes > 0 && status.Data.DiskFree < min(diskFull, status.Data.Holes)
	case thin.ModeOutOfDataSpace:
		return !status.QueueIfNoSpace
	}
	return true
}
