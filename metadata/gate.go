package metadata

import (
	"context"
	"sync"
	"sync/atomic"
)

// A gate keeps readers from what is not on stable storage. bbolt shows a transaction from the moment that its last page is
// written, a sync before it is durable: whoever is told of it then may find it gone after a crash. Such a reader waits here
// until the sync is over. Others pass without a lock.
type gate struct {
	durable atomic.Int64 // number of the last bbolt transaction that is on stable storage

	mu      sync.Mutex
	pending chan struct{} // closed when the commit under way is over; nil when none is
	inDoubt bool
}

// open begins a commit.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = make(chan struct{})
}

// done ends it: transaction id is on stable storage.
func (g *gate) done(id int) {
	g.durable.Store(int64(id))
	g.release()
}

// doubt ends it: nobody knows.
func (g *gate) doubt() {
	g.mu.Lock()
	g.inDoubt = true
	g.mu.Unlock()
	g.release()
}

func (g *gate) doubtful() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inDoubt
}

// release ends it: nothing can be seen of it.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.pending)
	g.pending = nil
}

// wait returns when transaction id is durable.
func (g *gate) wait(ctx context.Context, id int) error {
	for g.durable.Load() < int64(id) {
		g.mu.Lock()
		pending, inDoubt := g.pending, g.inDoubt
		g.mu.Unlock()
		if inDoubt {
			return ErrInDoubt
		}
		if pending == nil {
			continue // it ended between the two looks
		}
		select {
		case <-pending:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// A lock is a mutex for which one can stop waiting. It has room for one.
type lock chan struct{}

func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }

// LockContext locks unless ctx ends first.
func (l lock) LockContext(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
