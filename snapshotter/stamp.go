package snapshotter

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
)

// stampRetry is the time after which a pool that takes no changes is asked again.
const stampRetry = time.Second

// updateStamped calls update, which adds one to the store's transaction id, and the pool has that when
// updateStamped returns: a store without the update is older than the pool then, and is refused. An
// error does not say that update failed: the stamp may have. update is not called if the pool takes
// no stamp.
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

// requireStamped stamps the pool, and fails if it is known to take no changes, and so no next stamp.
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

// stamp sets the pool's transaction id to the store's. It does not change a foreign pool, whose
// transaction id belongs to the pool's owner.
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
	// If the commit of a stamp fails, the pool is read-only, and its status has an id that is not on the
	// disk until the pool is loaded again.
	if err := requireChangeable(status); err != nil {
		return err
	}
	return s.stampFrom(ctx, status.TransactionID)
}

// stampFrom is stamp for a pool that has this transaction id.
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

// stampAfterCrash stamps a pool that a crash left one transaction id behind the store, before clients
// see the record with that id.
func (s *idSource) stampAfterCrash(ctx context.Context) {
	if err := s.stamp(ctx); err != nil {
		s.stampLater(err)
	}
}

// stampLater stamps a pool that did not take the stamp of an update, as soon as it does: until then
// nothing tells an older store from this one.
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
