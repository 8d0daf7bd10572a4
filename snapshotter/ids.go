package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// leaseIDs is the number of device ids that one transaction reserves.
	leaseIDs = 64
	// leaseWrittenIDs is leaseIDs for volumes that thinsnap writes to before a record owns them.
	leaseWrittenIDs = 16
)

// idSource hands out device ids from leases. An id is unresolved until a record owns it, or its volume is
// known not to exist. A lease whose ids are all resolved can be closed. The start after a crash looks for
// leftovers in open leases.
type idSource struct {
	store *metadata.Store
	pool  Pool
	time  poolTime
	// stamping is held from the change of the store's transaction id until the pool has the same id, so the
	// store is never more than one ahead.
	stamping keyLock[struct{}]

	mu sync.Mutex
	// plain are free ids for volumes that thinsnap does not write to before a record owns them, written
	// those for volumes that it writes to.
	plain, written freeIDs
	leases         []*lease
	// foreign are ids of foreign volumes that the store still has in a lease.
	foreign map[thin.ID]struct{}
	// stamped is true while the pool has the store's transaction id.
	stamped bool
	done    sync.WaitGroup
	// running ends with stop.
	running context.Context
	cancel  context.CancelFunc
}

// freeIDs are the free ids in leases of one kind.
type freeIDs struct {
	written bool
	ranges  []idRange
	// refill is closed when the next lease has been taken, or could not be.
	refill    chan struct{}
	refillErr error
}

type idRange struct{ next, last uint32 }

type lease struct {
	first, last uint32
	written     bool
	unresolved  map[uint32]struct{}
}

func newIDSource(store *metadata.Store, p Pool) *idSource {
	running, cancel := context.WithCancel(context.Background())
	return &idSource{store: store, pool: p, time: poolTime{store: store, pool: p}, written: freeIDs{written: true},
		foreign: make(map[thin.ID]struct{}), running: running, cancel: cancel}
}

// take returns an unused id for a volume that is not written to before a record owns it.
func (s *idSource) take(ctx context.Context) (thin.ID, error) { return s.takeOf(ctx, &s.plain) }

// takeToWrite returns an unused id for a volume that thinsnap writes to before a record owns it. claim must
// store that record.
func (s *idSource) takeToWrite(ctx context.Context) (thin.ID, error) {
	return s.takeOf(ctx, &s.written)
}

func (s *idSource) takeOf(ctx context.Context, free *freeIDs) (thin.ID, error) {
	for {
		s.mu.Lock()
		id, left := free.pop()
		if left < free.leaseIDs()/2 {
			s.startRefill(free)
		}
		refill := free.refill
		s.mu.Unlock()
		if id != 0 {
			return thin.ID(id), nil
		}
		select {
		case <-refill:
			s.mu.Lock()
			err := free.refillErr
			s.mu.Unlock()
			if err != nil {
				return 0, fmt.Errorf("reserve device ids: %w", err)
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// leaseIDs is the number of ids in one lease. The next lease is taken in the background when less than half
// of that is left, so operations seldom wait for it.
func (f *freeIDs) leaseIDs() uint32 {
	if f.written {
		return leaseWrittenIDs
	}
	return leaseIDs
}

// pop takes the next free id, or 0 if none is left. left is the number of free ids after it.
func (f *freeIDs) pop() (id, left uint32) {
	for len(f.ranges) > 0 && f.ranges[0].next > f.ranges[0].last {
		f.ranges = f.ranges[1:]
	}
	if len(f.ranges) > 0 {
		id = f.ranges[0].next
		f.ranges[0].next++
	}
	for _, r := range f.ranges {
		left += r.last + 1 - r.next
	}
	return id, left
}

func (s *idSource) startRefill(free *freeIDs) {
	if free.refill != nil {
		select {
		case <-free.refill:
		default:
			return
		}
	}
	ready := make(chan struct{})
	free.refill = ready
	s.done.Go(func() {
		// The request's context may end first.
		got, err := s.takeLease(context.Background(), free.written)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.add(got)
			free.ranges = append(free.ranges, idRange{got.First, got.Last})
		} else {
			log.L.WithError(err).Error("cannot reserve device ids")
		}
		free.refillErr = err
		close(ready)
	})
}

// takeLease reserves ids in the store, closes the resolved leases and stamps the pool. The ids are used
// only after the stamp, so the pool is never ahead of the store, and never more than one transaction id
// behind.
func (s *idSource) takeLease(ctx context.Context, written bool) (metadata.LeaseRecord, error) {
	unlock, err := s.stamping.lock(ctx, struct{}{})
	if err != nil {
		return metadata.LeaseRecord{}, err
	}
	defer unlock()
	if err := s.requireStamped(ctx); err != nil {
		return metadata.LeaseRecord{}, err
	}
	if err := s.requireFree(ctx); err != nil {
		return metadata.LeaseRecord{}, err
	}
	if err := s.time.read(ctx); err != nil {
		return metadata.LeaseRecord{}, err
	}
	if err := s.time.check(); err != nil {
		return metadata.LeaseRecord{}, err
	}
	s.mu.Lock()
	closable := s.closable()
	s.mu.Unlock()
	// gofail: var beforeLease struct{}
	s.setStamped(false)
	var got metadata.LeaseRecord
	err = s.store.Update(ctx, func(tx *metadata.Tx) (err error) {
		for _, first := range closable {
			if err := tx.CloseLease(first); err != nil {
				return err
			}
		}
		if written {
			got, err = tx.LeaseWritten(leaseWrittenIDs)
		} else {
			got, err = tx.Lease(leaseIDs)
		}
		return err
	})
	if err != nil {
		return metadata.LeaseRecord{}, err
	}
	// gofail: var afterLease struct{}
	s.mu.Lock()
	s.forget(closable)
	// After a failed stamp, the ids are never handed out: the lease stays open until the next start.
	s.mu.Unlock()
	return got, s.stamp(ctx)
}

// claim calls update, which stores the record that owns an id. For a volume that thinsnap has written to,
// it also stamps the pool, so a start refuses an older store, without the record. A start can therefore
// delete a volume that only thinsnap has written to and no record owns.
func (s *idSource) claim(ctx context.Context, id thin.ID, update func() error) error {
	if !s.isWritten(id) {
		return update()
	}
	return s.updateStamped(ctx, update)
}

// isWritten reports whether an id is for a volume that thinsnap writes to before a record owns it.
func (s *idSource) isWritten(id thin.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.leases, func(l *lease) bool {
		return l.written && l.first <= uint32(id) && uint32(id) <= l.last
	})
}

// requireFree fails if a foreign volume already uses an id of the next lease: recovery could not tell it
// from thinsnap's own.
func (s *idSource) requireFree(ctx context.Context) error {
	rec, err := s.store.Pool(ctx)
	if err != nil || !rec.Foreign() {
		return err
	}
	var left uint32
	err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		_, left, err = tx.DeviceIDs()
		return err
	})
	if err != nil || left == 0 {
		return err
	}
	first := metadata.MaxDevice + 1 - left
	return RequireUnused(ctx, s.pool, thin.ID(first), thin.ID(min(first+leaseIDs-1, metadata.MaxDevice)))
}

// RequireUnused returns errdefs.ErrFailedPrecondition if a foreign pool has a volume with an id from first
// to last.
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

func (s *idSource) add(rec metadata.LeaseRecord) {
	unresolved := make(map[uint32]struct{})
	for id := rec.First; id <= rec.Last; id++ {
		unresolved[id] = struct{}{}
	}
	s.leases = append(s.leases, &lease{rec.First, rec.Last, rec.Written, unresolved})
}

// addEarlier adds an open lease of an earlier run with these unresolved ids. No id of the lease is handed
// out again.
func (s *idSource) addEarlier(rec metadata.LeaseRecord, ids []uint32) {
	unresolved := make(map[uint32]struct{})
	for _, id := range ids {
		unresolved[id] = struct{}{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases = append(s.leases, &lease{rec.First, rec.Last, rec.Written, unresolved})
}

// resolve records that the id has an owner or no volume.
func (s *idSource) resolve(id thin.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.leases {
		delete(l.unresolved, uint32(id))
	}
}

// disown takes the id of a foreign volume out of its lease, so that no start deletes the volume as a
// leftover. If the store cannot record that, isForeign stays true, and the caller must retry.
func (s *idSource) disown(ctx context.Context, id thin.ID) error {
	s.mu.Lock()
	s.foreign[id] = struct{}{}
	s.mu.Unlock()
	if err := s.store.Update(ctx, func(tx *metadata.Tx) error { return tx.Disown(uint32(id)) }); err != nil {
		return fmt.Errorf("record that volume %d is foreign: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.foreign, id)
	i := slices.IndexFunc(s.leases, func(l *lease) bool { return l.first <= uint32(id) && uint32(id) <= l.last })
	if i >= 0 {
		s.leases = slices.Replace(s.leases, i, i+1, s.leases[i].without(uint32(id))...)
	}
	return nil
}

// isForeign reports whether a volume is foreign although the store has its id in a lease.
func (s *idSource) isForeign(id thin.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, is := s.foreign[id]
	return is
}

// without returns the parts of a lease before and after an id.
func (l *lease) without(id uint32) (rest []*lease) {
	for _, r := range []idRange{{l.first, id - 1}, {id + 1, l.last}} {
		if r.next > r.last {
			continue
		}
		part := &lease{r.next, r.last, l.written, make(map[uint32]struct{})}
		for left := range l.unresolved {
			if r.next <= left && left <= r.last {
				part.unresolved[left] = struct{}{}
			}
		}
		rest = append(rest, part)
	}
	return rest
}

// closable returns the first ids of the leases that can be closed.
func (s *idSource) closable() []uint32 {
	var firsts []uint32
	for _, l := range s.leases {
		if len(l.unresolved) == 0 {
			firsts = append(firsts, l.first)
		}
	}
	return firsts
}

func (s *idSource) forget(firsts []uint32) {
	s.leases = slices.DeleteFunc(s.leases, func(l *lease) bool { return slices.Contains(firsts, l.first) })
}

// stop waits up to closeWait for a lease that is being taken.
func (s *idSource) stop() {
	s.cancel()
	waitAtMost(&s.done, closeWait)
}
