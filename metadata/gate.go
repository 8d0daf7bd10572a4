package metadata

import (
	"context"
	"sync"
	"sync/atomic"
)

// A gate keeps readers from changes that are not on stable storage. bbolt shows a transaction
// before the last sync: a reader that sees it may find it gone after a crash. Such a reader waits
// here for the sync. Others pass without a lock.
type gate struct {
	durable atomic.Int64 // number of the last bbolt transaction that is on stable storage

	mu      sync.Mutex
	pending chan struct{} // closed when the current commit ends; nil if there is none
	inDoubt bool
}

// begin starts a commit.
func (g *gate) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = make(chan struct{})
}

// done ends a commit that is on stable storage.
func (g *gate) done(id int) {
	g.durable.Store(int64(id))
	g.release()
}

// doubt ends a commit that may or may not be on stable storage.
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

// release ends a commit. Without done or doubt, the commit was not visible to readers.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.pending)
	g.pending = nil
}

// wait returns nil when the bbolt transaction with this id is on stable storage.
func (g *gate) wait(ctx context.Context, id int) error {
	for g.durable.Load() < int64(id) {
		g.mu.Lock()
		pending, inDoubt := g.pending, g.inDoubt
		g.mu.Unlock()
		if inDoubt {
			return ErrInDoubt
		}
		if pending == nil {
			continue // the commit ended between the two reads
		}
		select {
		case <-pending:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
