package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// freeTries is how many ranges of ids a lease may find in use before it fails. The next one begins
// after them.
const freeTries = 64

// wrapped tells whether every id was leased once.
func (s *idSource) wrapped(ctx context.Context) (wrapped bool, err error) {
	err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		wrapped, err = tx.Wrapped()
		return err
	})
	return wrapped, err
}

// takeLeaseAgain leases ids that are free again. The pool gets a new transaction id after it was
// found to have no volume with these ids, and before they are leased. So a copy of the pool that has
// one of the former volumes is older than the store by two, and is refused.
func (s *idSource) takeLeaseAgain(ctx context.Context, written bool) (metadata.LeaseRecord, error) {
	if err := s.closeResolved(ctx); err != nil {
		return metadata.LeaseRecord{}, err
	}
	n := uint32(leaseIDs)
	if written {
		n = leaseWrittenIDs
	}
	ids, err := s.findFree(ctx, n)
	if err != nil {
		return metadata.LeaseRecord{}, err
	}
	s.setStamped(false)
	err = s.store.Update(ctx, func(tx *metadata.Tx) error {
		_, err := tx.NewTransaction()
		return err
	})
	if err != nil {
		return metadata.LeaseRecord{}, err
	}
	if err := s.stamp(ctx); err != nil {
		return metadata.LeaseRecord{}, err
	}
	s.reused(thin.ID(ids.next), thin.ID(ids.last))
	return s.storeLease(ctx, func(tx *metadata.Tx) (metadata.LeaseRecord, error) {
		return tx.LeaseAgain(ids.next, ids.last, written)
	})
}

// closeResolved closes the leases whose ids are all resolved: some of these may be free.
func (s *idSource) closeResolved(ctx context.Context) error {
	s.mu.Lock()
	closable := s.closable()
	s.mu.Unlock()
	if len(closable) == 0 {
		return nil
	}
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, first := range closable {
			if err := tx.CloseLease(first); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(closable)
	return nil
}

// findFree returns at most n ids that the store has free, with which the pool has no volume and the
// kernel no mapped device, and that nothing of this process still knows.
func (s *idSource) findFree(ctx context.Context, n uint32) (idRange, error) {
	begins := make(map[uint32]bool)
	for len(begins) < freeTries {
		var r idRange
		err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
			r.next, r.last, err = tx.FreeAgain(s.searchFrom, n)
			return err
		})
		if err != nil {
			return idRange{}, err
		}
		if begins[r.next] {
			break
		}
		begins[r.next] = true
		if r.last < metadata.MaxDevice {
			s.searchFrom = r.last + 1
		} else {
			s.searchFrom = 1
		}
		if r, err = s.unused(ctx, r); err != nil || r.next != 0 {
			return r, err
		}
	}
	return idRange{}, fmt.Errorf("the pool has volumes with all device ids that are free in the store: see `thinsnap check`: %w",
		errdefs.ErrResourceExhausted)
}

// unused returns the longest part of a range that nothing uses; the next id is 0 if there is none.
func (s *idSource) unused(ctx context.Context, r idRange) (longest idRange, err error) {
	volumes, err := s.pool.Volumes(ctx, thin.ID(r.next), thin.ID(r.last))
	if err != nil {
		return idRange{}, err
	}
	begin := r.next
	for id := r.next; id <= r.last; id++ {
		_, used := volumes[thin.ID(id)]
		if !used {
			_, err := s.pool.Lookup(ctx, thin.ID(id))
			if err := ctx.Err(); err != nil {
				return idRange{}, err
			}
			used = !errors.Is(err, devmapper.ErrNotFound) || s.busy(thin.ID(id))
		}
		if used {
			begin = id + 1
			continue
		}
		if longest.next == 0 || id-begin > longest.last-longest.next {
			longest = idRange{begin, id}
		}
	}
	return longest, nil
}

// knowsID tells whether the background or an operation has still to do with the former volume of an id.
func (s *Snapshotter) knowsID(id thin.ID) bool {
	return s.reaper.has(id) || s.volumes.pinned(id) || s.spares.knows(id)
}

// forgetIDs drops all knowledge of the former volumes of ids.
func (s *Snapshotter) forgetIDs(first, last thin.ID) {
	s.leftovers.forget(first, last)
	for id := first; id <= last; id++ {
		s.volumes.forget(id)
	}
}

// requireFree fails if a foreign volume already uses an id of the next lease: recovery could not
// tell it from our own.
func (s *idSource) requireFree(ctx context.Context) error {
	rec, err := s.store.Pool(ctx)
	if err != nil || !rec.Foreign() {
		return err
	}
	var first uint32
	err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		first, err = tx.NextDevice()
		return err
	})
	if err != nil {
		return err
	}
	return RequireUnused(ctx, s.pool, thin.ID(first), thin.ID(min(first+leaseIDs-1, metadata.MaxDevice)))
}

// RequireUnused is errdefs.ErrFailedPrecondition if a foreign pool has a volume with an id from
// first to last.
func RequireUnused(ctx context.Context, p Pool, first, last thin.ID) error {
	used, err := p.Volumes(ctx, first, last)
	if err != nil || len(used) == 0 {
		return err
	}
	return fmt.Errorf("the pool has %d foreign volumes with ids that thinsnap needs, from %d on (the first is %d); "+
		"nothing was changed: use another pool, or delete these volumes if they are not needed (do they belong to another "+
		"thinsnap?): %w",
		len(used), metadata.FirstInForeign, slices.Min(slices.Collect(maps.Keys(used))), errdefs.ErrFailedPrecondition)
}
