package metadata

import (
	"context"
	"sync"
	"sync/atomic"
)

// A gate keeps readers from changes that are not on stable storage. bbolt shows a transaction once
// its last page is written, a sync before it is durable: a reader that sees it then may find it
// gone after a crash. Such a reader waits here until the sync ends. Others pass without a lock.
type gate struct {
	durable atomic.Int64 // number of the last bbolt transaction that is on stable storage

	mu      sync.Mutex
	pending chan struct{} // closed when the current commit ends; nil if there is none
	inDoubt bool
}

// open begins a commit.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = make(chan struct{})
}

// done ends the commit: transaction id is on stable storage.
func (g *gate) done(id int) {
	g.durable.Store(int64(id))
	g.release()
}

// doubt ends the commit: it may be on stable storage or not.
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

// release ends the commit: readers do not see it.
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
			continue // it ended between the two reads
		}
		select {
		case <-pending:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
