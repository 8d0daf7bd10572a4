package metadata

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// maxBatch is the most Updates that share a transaction. It bounds how long one waits for those beside it.
const maxBatch = 256

// An operation is one call of Update. Its function runs on the caller's goroutine, where a panic, a runtime.Goexit or a
// test's FailNow hits whom it concerns; the writer only says when.
type operation struct {
	fn    func(*Tx) error
	state atomic.Int32
	run   chan *Tx    // from the writer: run fn with this, and answer on ran
	ran   chan result // has room for one
	done  chan error  // from the writer: what Update returns; has room for one

	result result // of the last run; the writer's
}

// States of an operation. Whoever moves it out of queued decides: the writer, or a context that has ended.
const (
	queued int32 = iota
	started
	abandoned
)

// A result is how fn ended.
type result struct {
	err  error
	gone bool // by a panic or Goexit: nobody waits for this operation any more
}

// A writer is the queue before the one goroutine that writes.
type writer struct {
	mu      sync.Mutex
	wake    *sync.Cond // there is something in the queue, or stopping is set
	queue   []*operation
	stopped bool
	ended   chan struct{}
}

// start begins to call process whenever there is something in the queue, of which it is to take a batch. What is queued while
// process commits one batch is the next: nobody waits for others to come.
func (w *writer) start(process func()) {
	w.wake = sync.NewCond(&w.mu)
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		for w.wait() {
			process()
		}
	}()
}

// stop returns when all that was queued has been processed. Nothing can be queued any more.
func (w *writer) stop() {
	w.mu.Lock()
	w.stopped = true
	w.wake.Signal()
	w.mu.Unlock()
	<-w.ended
}

// wait returns true when something is in the queue, and false at the end.
func (w *writer) wait() bool {
	// Those who have just had their answers come back with more if they get the processor: without this, the first of them
	// would have a transaction to himself (with 8 callers, twice as many transactions). With nobody to run, it costs nothing.
	runtime.Gosched()
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queue == nil && !w.stopped {
		w.wake.Wait()
	}
	return w.queue != nil
}

// take starts the next operations, maxBatch at most, that have not been abandoned.
func (w *writer) take() []*operation {
	w.mu.Lock()
	defer w.mu.Unlock()
	var batch []*operation
	taken := 0
	for _, o := range w.queue {
		if len(batch) == maxBatch {
			break
		}
		taken++
		if o.state.CompareAndSwap(queued, started) {
			batch = append(batch, o)
		}
	}
	clear(w.queue[:taken])
	if w.queue = w.queue[taken:]; len(w.queue) == 0 {
		w.queue = nil
	}
	return batch
}

func (w *writer) do(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &operation{fn: fn, run: make(chan *Tx), ran: make(chan result, 1), done: make(chan error, 1)}
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return ErrClosed
	}
	w.queue = append(w.queue, o)
	w.wake.Signal()
	w.mu.Unlock()

	ended := ctx.Done()
	for {
		select {
		case tx := <-o.run:
			o.call(tx)
		case err := <-o.done:
			return err
		case <-ended:
			if o.state.CompareAndSwap(queued, abandoned) {
				return ctx.Err()
			}
			ended = nil
		}
	}
}

// call runs fn, and answers however it ends.
func (o *operation) call(tx *Tx) {
	r := result{gone: true}
	defer func() { o.ran <- r }()
	r = result{err: o.fn(tx)}
}
