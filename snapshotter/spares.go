package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// sparesPerOrigin is the maximum number of spares of one origin.
	sparesPerOrigin = 8
	// sparesIdle is how long the spares of an origin are kept without a new snapshot of it.
	sparesIdle = 5 * time.Minute
	// sparesDelay is the time between the use of a spare and the creation of more: their writes would delay
	// the transaction of the snapshot that took the spare.
	sparesDelay = 100 * time.Millisecond
	// sparesStop bounds how long Close waits for the creation and deletion of spares. The next start
	// deletes the rest.
	sparesStop = 10 * time.Second
)

// spares creates snapshots of origins before Prepare needs them: an activation takes some 20 ms, mostly
// spent waiting for the kernel.
//
// A newly committed origin gets one spare, for the next layer or the first container. An origin that is
// used again gets more: twice as many each time that none was ready.
type spares struct {
	// most is the maximum number of spares; 0 for none.
	most   int
	create func(ctx context.Context, from origin) (thin.ID, string, error)
	// remove deletes a spare, in the background if it must be retried.
	remove func(ctx context.Context, id thin.ID)

	ctx    context.Context
	cancel context.CancelFunc
	// running counts the spares that are being created, taken or deleted, listed or not.
	running sync.WaitGroup

	mu sync.Mutex
	// stopped is true when no more spares may be created.
	stopped bool
	origins map[thin.ID]*originSpares
	total   int
	counts  SpareCounts
}

// SpareCounts has the numbers of spares.
type SpareCounts struct {
	// Present is the number of spares, including those that are being created.
	Present uint64
	// Taken counts the snapshots that took a spare, Missed those that found none.
	Taken, Missed uint64
}

// spare is an active volume, created from an origin for a snapshot that is not prepared yet. No record owns
// it: after a crash it is a leftover in an open lease.
type spare struct {
	// ready is closed when the other fields are set.
	ready chan struct{}
	id    thin.ID
	path  string
	err   error
}

type originSpares struct {
	from origin
	// want is the number of spares that the origin should have.
	want int
	// spares are the current spares, oldest first.
	spares []*spare
	// takes counts the snapshots that were created from the origin.
	takes int
	// filling is true while fill is scheduled.
	filling bool
	used    time.Time
	idle    *time.Timer
	// dropped is closed when all spares dropped so far are deleted.
	dropped chan struct{}
}

func newSpares(
	most int,
	create func(ctx context.Context, from origin) (thin.ID, string, error),
	remove func(ctx context.Context, id thin.ID),
) *spares {
	ctx, cancel := context.WithCancel(context.Background())
	return &spares{most: most, create: create, remove: remove, ctx: ctx, cancel: cancel,
		origins: make(map[thin.ID]*originSpares)}
}

// expect creates a spare of an origin, because a Prepare will probably need it soon.
func (p *spares) expect(from origin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.touch(from); o != nil {
		o.want = max(o.want, 1)
		p.fill(o)
	}
}

// take returns a spare of an origin, and has more created if the origin needs them. It waits for a spare
// that is being created, which is faster than a new volume.
func (p *spares) take(ctx context.Context, from origin) (id thin.ID, path string, ok bool) {
	sp := p.claim(from)
	if sp == nil {
		return 0, "", false
	}
	defer p.running.Done()
	select {
	case <-sp.ready:
		return sp.id, sp.path, sp.err == nil
	case <-ctx.Done():
		p.running.Go(func() { p.deleteSpare(sp) })
		return 0, "", false
	}
}

func (sp *spare) isReady() bool {
	select {
	case <-sp.ready:
		return true
	default:
		return false
	}
}

// claim takes a spare out of the list, or returns nil if there is none, and decides how many the origin
// needs. The spare counts as running until the caller calls Done.
func (p *spares) claim(from origin) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.touch(from)
	if o == nil {
		p.counts.Missed++
		return nil
	}
	o.takes++
	defer p.fillSoon(o)
	var first *spare
	if len(o.spares) > 0 {
		first, o.spares = o.spares[0], o.spares[1:]
		p.running.Add(1)
		p.total--
		p.counts.Taken++
	} else {
		p.counts.Missed++
	}
	switch {
	case o.takes == 1:
		// Most layers become the parent of only one other layer.
		o.want = 0
	case first == nil || !first.isReady():
		o.want = min(max(2, 2*o.want), sparesPerOrigin)
	}
	return first
}

// touch returns the spares of an origin and restarts its idle time. It returns nil if no spares are
// allowed.
func (p *spares) touch(from origin) *originSpares {
	if p.most == 0 || p.stopped {
		return nil
	}
	o := p.origins[from.volume]
	if o == nil {
		o = &originSpares{from: from}
		o.idle = time.AfterFunc(sparesIdle, func() { p.forget(o) })
		p.origins[from.volume] = o
	}
	o.used = time.Now()
	o.idle.Reset(sparesIdle)
	return o
}

func (p *spares) fillSoon(o *originSpares) {
	if o.filling || len(o.spares) >= o.want {
		return
	}
	o.filling = true
	time.AfterFunc(sparesDelay, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		o.filling = false
		if p.origins[o.from.volume] == o {
			p.fill(o)
		}
	})
}

// fill creates the missing spares of an origin. At the maximum, it drops those of the least recently used
// origin.
func (p *spares) fill(o *originSpares) {
	for len(o.spares) < o.want {
		if p.total >= p.most && !p.evict(o) {
			return
		}
		sp := &spare{ready: make(chan struct{})}
		o.spares = append(o.spares, sp)
		p.total++
		p.running.Go(func() { p.createSpare(o, sp) })
	}
}

// evict drops the spares of the least recently used origin other than except, and returns false if there
// are none.
func (p *spares) evict(except *originSpares) bool {
	var oldest *originSpares
	for _, o := range p.origins {
		if o != except && len(o.spares) > 0 && (oldest == nil || o.used.Before(oldest.used)) {
			oldest = o
		}
	}
	if oldest != nil {
		p.drop(oldest)
	}
	return oldest != nil
}

func (p *spares) createSpare(o *originSpares, sp *spare) {
	sp.id, sp.path, sp.err = p.create(p.ctx, o.from)
	// gofail: var afterSpare struct{}
	close(sp.ready)
	if sp.err == nil {
		return
	}
	log.L.WithField("origin", o.from.volume).WithError(sp.err).Debug("cannot create a spare")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(o)
}

// dropAll deletes all spares, because the pool is short of space.
func (p *spares) dropAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.origins {
		p.drop(o)
	}
}

// drop deletes the spares of an origin in the background.
func (p *spares) drop(o *originSpares) {
	o.want = 0
	if len(o.spares) == 0 {
		return
	}
	spares, before, dropped := o.spares, o.dropped, make(chan struct{})
	p.total -= len(spares)
	o.spares, o.dropped = nil, dropped
	p.running.Go(func() {
		defer close(dropped)
		var all sync.WaitGroup
		for _, sp := range spares {
			all.Go(func() { p.deleteSpare(sp) })
		}
		all.Wait()
		if before != nil {
			<-before
		}
	})
}

// deleteSpare deletes an unused spare once it is created.
func (p *spares) deleteSpare(sp *spare) {
	<-sp.ready
	if sp.err == nil {
		p.remove(context.WithoutCancel(p.ctx), sp.id)
	}
}

// forget drops the spares of an idle origin.
func (p *spares) forget(o *originSpares) {
	p.mu.Lock()
	p.drop(o)
	dropped := o.dropped
	p.mu.Unlock()
	// retire must find the origin until its spares are deleted.
	if dropped != nil {
		<-dropped
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(o.spares) == 0 && o.dropped == dropped && p.origins[o.from.volume] == o {
		delete(p.origins, o.from.volume)
	}
}

// retire deletes the spares of an origin and waits for that. It runs before the origin's deletion, because
// a discard of the origin does not free the blocks that spares share.
func (p *spares) retire(ctx context.Context, id thin.ID) error {
	p.mu.Lock()
	o := p.origins[id]
	if o != nil {
		p.drop(o)
		delete(p.origins, id)
		o.idle.Stop()
	}
	p.mu.Unlock()
	if o == nil {
		return nil
	}
	return o.awaitDropped(ctx)
}

func (o *originSpares) awaitDropped(ctx context.Context) error {
	if o.dropped == nil {
		return nil
	}
	select {
	case <-o.dropped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop deletes all spares. It waits up to sparesStop for their creation and deletion: the next start
// would miss a spare that is created later.
func (p *spares) stop() {
	defer p.cancel()
	p.mu.Lock()
	p.stopped = true
	for _, o := range p.origins {
		p.drop(o)
		o.idle.Stop()
	}
	p.mu.Unlock()
	// gofail: var afterDropSpares struct{}
	waitAtMost(&p.running, sparesStop)
}

func (p *spares) status() SpareCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := p.counts
	counts.Present = uint64(p.total)
	return counts
}

// of returns the spares of an origin, except those that are being created.
func (p *spares) of(id thin.ID) (ids []thin.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.origins[id]; o != nil {
		for _, sp := range o.spares {
			if sp.isReady() && sp.err == nil {
				ids = append(ids, sp.id)
			}
		}
	}
	return ids
}

// volumes returns all spares, except those that are being created.
func (p *spares) volumes() map[thin.ID]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make(map[thin.ID]bool)
	for _, o := range p.origins {
		for _, sp := range o.spares {
			if sp.isReady() && sp.err == nil {
				ids[sp.id] = true
			}
		}
	}
	return ids
}

// createSpareVolume creates a spare with the size of a container, unless the origin was removed or the pool
// is short of space.
func (s *Snapshotter) createSpareVolume(ctx context.Context, from origin) (thin.ID, string, error) {
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(uint32(from.volume))
		if !owned || owner.Kind == metadata.OwnerTrash {
			return fmt.Errorf("origin volume %d: %w", from.volume, errdefs.ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return 0, "", err
	}
	if err := s.checkPool(ctx); err != nil {
		return 0, "", err
	}
	if bytes := s.containerBytes(from); bytes != from.bytes {
		return s.createLarger(ctx, from, bytes)
	}
	return s.createActive(ctx, from, from.bytes, s.ids.take)
}

func (s *Snapshotter) deleteSpareVolume(ctx context.Context, id thin.ID) {
	if err := s.settle(ctx, id, true); err != nil {
		s.reaper.add(id, true)
	}
}

// Spares returns the numbers of spares.
func (s *Snapshotter) Spares() SpareCounts { return s.spares.status() }

// SpareVolumes returns the volumes of the spares, except those that are being created.
func (s *Snapshotter) SpareVolumes() map[thin.ID]bool { return s.spares.volumes() }
