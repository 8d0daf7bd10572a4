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
	// sparesPerOrigin is how many spares one origin has at most.
	sparesPerOrigin = 8
	// sparesIdle is how long the spares of an origin are kept while nobody makes
	// a snapshot of it.
	sparesIdle = 5 * time.Minute
	// sparesDelay is how long after one was taken the next are made: what is written
	// for that would be in the way of the transaction of whoever took it.
	sparesDelay = 100 * time.Millisecond
	// sparesStop bounds how long Close waits for the spares to be deleted; what
	// is left then is deleted at the next start.
	sparesStop = 10 * time.Second
)

// spares keeps children of origins made ahead: to make a volume active takes the
// kernel some 20 ms, nearly all of it waiting, which is better done before anybody
// asks for the volume.
//
// An origin that was just committed gets one, for the layer above it or for the
// first container. One that is prepared from again gets more, twice as many each
// time that none was ready.
type spares struct {
	// most is how many there are at a time; 0 for none.
	most  int
	birth func(ctx context.Context, from origin) (thin.ID, string, error)
	// remove deletes one, now or later.
	remove func(ctx context.Context, id thin.ID)

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	litters map[thin.ID]*litter
	total   int
	counts  SpareCounts
}

// SpareCounts tells how the volumes that are made ahead are doing.
type SpareCounts struct {
	// Ready is how many there are now, those in the making included.
	Ready uint64
	// Taken counts the snapshots that were made of one, and Missed those for
	// which there was none.
	Taken, Missed uint64
}

// spare is a volume that nobody has asked for yet: a child of some origin, active,
// and ready to become a snapshot. No record owns it: after a crash it is one of
// the leftovers in an open lease.
type spare struct {
	// made is closed when the rest is there.
	made chan struct{}
	id   thin.ID
	path string
	err  error
}

// litter is the spares of one origin.
type litter struct {
	from origin
	// want is how many there should be.
	want int
	// spares are those that there are, the oldest first.
	spares []*spare
	// takes counts the snapshots that were made of the origin.
	takes int
	// filling tells that more are made soon.
	filling bool
	used    time.Time
	idle    *time.Timer
	// dropped is closed when those are deleted that were dropped so far.
	dropped chan struct{}
}

func newSpares(
	most int,
	birth func(ctx context.Context, from origin) (thin.ID, string, error),
	remove func(ctx context.Context, id thin.ID),
) *spares {
	ctx, cancel := context.WithCancel(context.Background())
	return &spares{most: most, birth: birth, remove: remove, ctx: ctx, cancel: cancel, litters: make(map[thin.ID]*litter)}
}

// expect says that a child of an origin may soon be wanted.
func (p *spares) expect(from origin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.litter(from); l != nil {
		l.want = max(l.want, 1)
		p.fill(l)
	}
}

// take returns a spare if there is one, and sees to it that there are some later.
// One that is still being made is waited for: it is there sooner than one that
// would be begun now.
func (p *spares) take(ctx context.Context, from origin) (id thin.ID, path string, ok bool) {
	sp := p.pop(from)
	if sp == nil {
		return 0, "", false
	}
	select {
	case <-sp.made:
		return sp.id, sp.path, sp.err == nil
	case <-ctx.Done():
		go p.discard(sp)
		return 0, "", false
	}
}

func (sp *spare) isMade() bool {
	select {
	case <-sp.made:
		return true
	default:
		return false
	}
}

func (p *spares) pop(from origin) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.litter(from)
	if l == nil {
		p.counts.Missed++
		return nil
	}
	l.takes++
	defer p.fillSoon(l)
	var first *spare
	if len(l.spares) > 0 {
		first, l.spares = l.spares[0], l.spares[1:]
		p.total--
		p.counts.Taken++
	} else {
		p.counts.Missed++
	}
	switch {
	case l.takes == 1:
		// Most layers are the parent of one other, and of nothing after that.
		l.want = 0
	case first == nil || !first.isMade():
		l.want = min(max(2, 2*l.want), sparesPerOrigin)
	}
	return first
}

// litter returns the spares of an origin that is being used; nil if there are to
// be none.
func (p *spares) litter(from origin) *litter {
	if p.most == 0 || p.litters == nil {
		return nil
	}
	l := p.litters[from.device]
	if l == nil {
		l = &litter{from: from}
		l.idle = time.AfterFunc(sparesIdle, func() { p.forget(l) })
		p.litters[from.device] = l
	}
	l.used = time.Now()
	l.idle.Reset(sparesIdle)
	return l
}

func (p *spares) fillSoon(l *litter) {
	if l.filling || len(l.spares) >= l.want {
		return
	}
	l.filling = true
	time.AfterFunc(sparesDelay, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		l.filling = false
		if p.litters[l.from.device] == l {
			p.fill(l)
		}
	})
}

// fill has the spares made that an origin lacks, if need be in the place of those
// of the origin that was not used for the longest time.
func (p *spares) fill(l *litter) {
	for len(l.spares) < l.want {
		if p.total >= p.most && !p.evict(l) {
			return
		}
		sp := &spare{made: make(chan struct{})}
		l.spares = append(l.spares, sp)
		p.total++
		go p.produce(l, sp)
	}
}

func (p *spares) evict(except *litter) bool {
	var oldest *litter
	for _, l := range p.litters {
		if l != except && len(l.spares) > 0 && (oldest == nil || l.used.Before(oldest.used)) {
			oldest = l
		}
	}
	if oldest != nil {
		p.drop(oldest)
	}
	return oldest != nil
}

func (p *spares) produce(l *litter, sp *spare) {
	sp.id, sp.path, sp.err = p.birth(p.ctx, l.from)
	// gofail: var afterSpare struct{}
	close(sp.made)
	if sp.err == nil {
		return
	}
	log.L.WithField("origin", l.from.device).WithError(sp.err).Debug("no spare was made")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(l)
}

// dropAll has all spares deleted, for want of space.
func (p *spares) dropAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.litters {
		p.drop(l)
	}
}

// drop has the spares of an origin deleted.
func (p *spares) drop(l *litter) {
	l.want = 0
	if len(l.spares) == 0 {
		return
	}
	spares, before, dropped := l.spares, l.dropped, make(chan struct{})
	p.total -= len(spares)
	l.spares, l.dropped = nil, dropped
	go func() {
		defer close(dropped)
		var all sync.WaitGroup
		for _, sp := range spares {
			all.Go(func() { p.discard(sp) })
		}
		all.Wait()
		if before != nil {
			<-before
		}
	}()
}

// discard deletes a spare that nobody took, if it comes to be.
func (p *spares) discard(sp *spare) {
	<-sp.made
	if sp.err == nil {
		p.remove(context.WithoutCancel(p.ctx), sp.id)
	}
}

// forget drops the spares of an origin that is not used any more.
func (p *spares) forget(l *litter) {
	p.mu.Lock()
	p.drop(l)
	dropped := l.dropped
	p.mu.Unlock()
	// Until then retire has to find them.
	if dropped != nil {
		<-dropped
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(l.spares) == 0 && l.dropped == dropped && p.litters[l.from.device] == l {
		delete(p.litters, l.from.device)
	}
}

// retire deletes the spares of an origin that is to be deleted itself, and waits
// for that: what it shares with them its own discard would not give back.
func (p *spares) retire(ctx context.Context, id thin.ID) error {
	p.mu.Lock()
	l := p.litters[id]
	if l != nil {
		p.drop(l)
		delete(p.litters, id)
		l.idle.Stop()
	}
	p.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.awaitDropped(ctx)
}

func (l *litter) awaitDropped(ctx context.Context) error {
	if l.dropped == nil {
		return nil
	}
	select {
	case <-l.dropped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop deletes all spares, as far as that takes no longer than sparesStop. Those in the
// making are finished first: one that were interrupted would stay in the pool until the next start.
func (p *spares) stop() {
	defer p.cancel()
	p.mu.Lock()
	all := p.litters
	p.litters = nil
	for _, l := range all {
		p.drop(l)
		l.idle.Stop()
	}
	p.mu.Unlock()
	// gofail: var afterDropSpares struct{}
	ctx, cancel := context.WithTimeout(context.Background(), sparesStop)
	defer cancel()
	for _, l := range all {
		// Whoever comes last finds the time used up, and that is all right.
		_ = l.awaitDropped(ctx)
	}
}

// status returns the figures.
func (p *spares) status() SpareCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := p.counts
	counts.Ready = uint64(p.total)
	return counts
}

// volumes returns those that are ready.
func (p *spares) volumes() map[thin.ID]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make(map[thin.ID]bool)
	for _, l := range p.litters {
		for _, sp := range l.spares {
			if sp.isMade() && sp.err == nil {
				ids[sp.id] = true
			}
		}
	}
	return ids
}

// newSpare makes a child of a volume that snapshots are still made of, unless the
// pool is short of space.
func (s *Snapshotter) newSpare(ctx context.Context, from origin) (thin.ID, string, error) {
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(uint32(from.device))
		if !owned || owner.Kind == metadata.OwnerTrash {
			return fmt.Errorf("volume %d: %w", from.device, errdefs.ErrNotFound)
		}
		return nil
	})
	if err == nil {
		err = s.checkPool(ctx)
	}
	if err != nil {
		return 0, "", err
	}
	return s.activeChild(ctx, from, from.bytes)
}

// removeSpare deletes a volume that nobody asked for.
func (s *Snapshotter) removeSpare(ctx context.Context, id thin.ID) {
	if err := s.settle(ctx, id, true); err != nil {
		s.reaper.add(id, true)
	}
}

// Spares tells how the volumes that are made ahead are doing.
func (s *Snapshotter) Spares() SpareCounts { return s.spares.status() }

// SpareVolumes returns the volumes that are made ahead, and belong to no snapshot
// yet.
func (s *Snapshotter) SpareVolumes() map[thin.ID]bool { return s.spares.volumes() }
