package snapshotter

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
)

// stampRetry is the time between two attempts to stamp a pool that takes no changes.
const stampRetry = time.Second

// updateStamped calls update, which adds one to the store's transaction id, and then stamps the pool with
// that. A store without the update is then older than the pool, and is refused. If the pool takes no stamp,
// update is not called. If only the stamp failed, updateStamped returns an error after update succeeded.
func (s *idSource) updateStamped(ctx context.Context, update func() error) error {
	unlock, err := s.stamping.lock(ctx, struct{}{})
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.requireStamped(ctx); err != nil {
		return err
	}
	rec, err := s.store.Pool(ctx)
	if err != nil {
		return err
	}
	s.setStamped(false)
	if err := update(); err != nil {
		return err
	}
	// gofail: var beforeUpdateStamp struct{}
	return s.stampFrom(context.WithoutCancel(ctx), rec.TransactionID)
}

// requireStamped stamps the pool, and fails if the pool would not take another stamp.
func (s *idSource) requireStamped(ctx context.Context) error {
	if err := s.stamp(ctx); err != nil {
		return err
	}
	status, err := s.pool.CachedStatus(ctx, watchStep/2)
	if err != nil {
		return err
	}
	return requireChangeable(status)
}

func requireChangeable(status pool.Status) error {
	if status.Changeable() {
		return nil
	}
	return poolError(status)
}

// stamp sets the pool's transaction id to the store's. That of a foreign pool belongs to the program that
// made the pool, and is not changed.
func (s *idSource) stamp(ctx context.Context) error {
	s.mu.Lock()
	stamped := s.stamped
	s.mu.Unlock()
	if stamped {
		return nil
	}
	status, err := s.pool.Status(ctx)
	if err != nil {
		return err
	}
	// After the failed commit of a stamp the pool is read-only. Until the pool is loaded again, its status
	// has an id that is not on the disk.
	if err := requireChangeable(status); err != nil {
		return err
	}
	return s.stampFrom(ctx, status.TransactionID)
}

// stampFrom is stamp for a pool with this transaction id.
func (s *idSource) stampFrom(ctx context.Context, id uint64) error {
	rec, err := s.store.Pool(ctx)
	if err != nil {
		return err
	}
	if !rec.Foreign() && id != rec.TransactionID {
		// gofail: var beforeStamp struct{}
		if err := s.pool.SetTransactionID(ctx, id, rec.TransactionID); err != nil {
			return fmt.Errorf("set the transaction id of pool %s to %d: %w", rec.Name, rec.TransactionID, err)
		}
	}
	// gofail: var afterStamp struct{}
	s.setStamped(true)
	return nil
}

// stampAfterCrash stamps a pool that a crash left one transaction id behind the store, before clients see
// the record with that id.
func (s *idSource) stampAfterCrash(ctx context.Context) {
	if err := s.stamp(ctx); err != nil {
		s.stampLater(err)
	}
}

// stampLater stamps a pool that refused the stamp of an update, as soon as it accepts it. Until then a
// start also accepts a store without the update.
func (s *idSource) stampLater(err error) {
	log.L.WithError(err).Warn("the pool does not take the store's transaction id; trying again")
	s.done.Go(func() {
		for err != nil {
			select {
			case <-time.After(stampRetry):
			case <-s.running.Done():
				return
			}
			err = s.stampLocked(s.running)
		}
		log.L.Info("the pool has the store's transaction id")
	})
}

func (s *idSource) stampLocked(ctx context.Context) error {
	unlock, err := s.stamping.lock(ctx, struct{}{})
	if err != nil {
		return err
	}
	defer unlock()
	return s.stamp(ctx)
}

func (s *idSource) setStamped(stamped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamped = stamped
}
