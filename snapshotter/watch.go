package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// watchStep is the time between two checks for failed writes of the pool.
	watchStep = time.Second
	// roomyAge is the greatest age of the kernel's status in these checks while the pool has much free
	// space. The free space of the disk below it is always current.
	roomyAge = 30 * time.Second
	// fillRate is the assumed maximum, in bytes a second, at which a pool fills up. Writers on one disk
	// stay below it.
	fillRate = 4 << 30
	// heldMargin is subtracted from the kernel's timeout, after which held-back writes count as failed. A
	// check runs every watchStep with a status up to half as old; the rest is for a busy machine.
	heldMargin = 4 * watchStep
	// diskFull is the number of free bytes below which a disk is full: its file system may need them
	// itself.
	diskFull = 1 << 20
)

// watch runs detectLostWrites every watchStep until ctx ends.
func (s *Snapshotter) watch(ctx context.Context) {
	// In another goroutine, because the store's disk may not answer for a while.
	detected := make(chan struct{}, 1)
	s.underway.Go(func() { s.storeDetected(ctx, detected) })
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
			select {
			case detected <- struct{}{}:
			default:
			}
		case <-ctx.Done():
			return
		}
	}
}

// detectLostWrites marks all writable active volumes while the pool fails writes. The kernel reports failed
// writeback only to a process that syncs, and leaves no other trace; unpacking does not sync. The pool's
// status is at most age old; next is the age for the next call. After an error, nothing is known.
func (s *Snapshotter) detectLostWrites(ctx context.Context, age time.Duration) (next time.Duration, err error) {
	next = watchStep / 2
	began := time.Now()
	status, err := s.pool.RecentStatus(ctx, age)
	if err != nil {
		return next, fmt.Errorf("find out whether the pool fails writes: %w", err)
	}
	fails := s.full.mayHaveFailed(status) || failsWrites(status)
	if !fails {
		return nextStatusAge(status), nil
	}
	active, err := s.pool.Active(ctx)
	if err != nil {
		return next, fmt.Errorf("the pool fails writes, and the volumes that may lose them cannot be listed: %w", err)
	}
	// If the pool has recovered, a volume created since this call began has lost nothing.
	if status, err = s.pool.RecentStatus(ctx, 0); err != nil {
		return next, fmt.Errorf("find out whether the pool fails writes: %w", err)
	}
	recovered := !s.full.mayHaveFailed(status) && !failsWrites(status)
	for _, vol := range active {
		if recovered && s.volumes.wasCreatedAfter(vol.ID, began) {
			continue
		}
		if !vol.ReadOnly && s.volumes.noteWritesLost(vol.ID) {
			log.G(ctx).WithField("device", vol.Path).WithField("pool", status.PoolStatus.String()).
				Warn("the pool fails writes: this volume may lose writes, and can no longer be committed")
		}
	}
	return next, nil
}

// storeWritesLost stores the marks of noteWritesLost, so that no later run commits these volumes. The mark
// of a volume without a record, such as a spare, is tried again each second: an Update that changes
// nothing costs no sync.
func (s *Snapshotter) storeWritesLost(ctx context.Context) error {
	if len(s.volumes.unstoredWritesLost()) == 0 {
		return nil
	}
	var stored []thin.ID
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		stored = nil
		// Read in the transaction: a Prepare may have taken a spare, and dropped its mark.
		for _, id := range s.volumes.unstoredWritesLost() {
			owned, err := tx.MarkWritesLost(uint32(id))
			if err != nil {
				return err
			}
			if owned {
				stored = append(stored, id)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store which volumes may have lost writes: %w", err)
	}
	s.volumes.noteWritesLostStored(stored)
	return nil
}

// storeDetected runs storeWritesLost after each signal until ctx ends. It logs the first of consecutive
// failures.
func (s *Snapshotter) storeDetected(ctx context.Context, detected <-chan struct{}) {
	hasFailed := false
	for {
		select {
		case <-detected:
			err := s.storeWritesLost(ctx)
			if err != nil && !hasFailed && ctx.Err() == nil {
				log.G(ctx).WithError(err).Warn("cannot store which volumes may have lost writes: until a later " +
					"try succeeds, a restart forgets them")
			}
			hasFailed = err != nil
		case <-ctx.Done():
			return
		}
	}
}

// storeWritesLostAtClose is storeWritesLost after watch has ended. It waits up to closeWait.
func (s *Snapshotter) storeWritesLostAtClose() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() {
		if err := s.storeWritesLost(ctx); err != nil {
			log.L.WithError(err).Warn("the next start does not know which volumes may have lost writes")
		}
	})
	waitAtMost(&work, closeWait)
}

// fullPool records since when the pool may hold back writes.
type fullPool struct {
	mu    sync.Mutex
	last  pool.Status // the newest status
	since time.Time
}

// mayHaveFailed reports whether the pool may have held back writes for about as long as the kernel does
// before it fails them. A pool that then gets space fails writes only for a moment, which checks can miss.
func (f *fullPool) mayHaveFailed(status pool.Status) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !status.Asked.Before(f.last.Asked) {
		f.add(status)
	}
	timeout := f.last.NoSpaceTimeout
	return f.last.Mode == thin.ModeOutOfDataSpace && timeout > 0 && time.Since(f.since) >= timeout-heldMargin
}

// add records a status. The pool may be full since just after the last status with free space or another
// size. The kernel restarts its timeout when the pool is resumed with a larger table.
func (f *fullPool) add(status pool.Status) {
	switch {
	case f.last.Asked.IsZero():
		f.since = status.Asked
	case f.last.Mode != thin.ModeOutOfDataSpace || f.last.Data.Total != status.Data.Total:
		f.since = f.last.Asked
	}
	f.last = status
}

// nextStatusAge returns the greatest age of the status at the next check. It is less than the time to fill
// the pool, so that the start of a full period is known. It is at most half of the kernel's timeout, so
// that no pool fills up, fails writes and recovers unseen.
func nextStatusAge(status pool.Status) time.Duration {
	if !status.QueueIfNoSpace {
		return watchStep / 2
	}
	age := min(roomyAge, time.Duration((status.Data.Total-status.Data.Used)/fillRate)*time.Second)
	if status.NoSpaceTimeout > 0 {
		age = min(age, status.NoSpaceTimeout/2)
	}
	return max(age, watchStep/2)
}

// failsWrites reports whether a write to a new block of a volume may fail.
func failsWrites(status pool.Status) bool {
	switch status.Mode {
	case thin.ModeReadWrite:
		return status.Data.Holes > 0 && status.Data.DiskFree < min(diskFull, status.Data.Holes)
	case thin.ModeOutOfDataSpace:
		return !status.QueueIfNoSpace
	}
	return true
}
