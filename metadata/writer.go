package metadata

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// maxBatch is the maximum number of Updates in a transaction. It bounds the wait of one for the
// others.
const maxBatch = 256

// An operation is one call of Update. Its function runs on the caller's goroutine, where a panic, a
// runtime.Goexit or a test's FailNow belongs. The writer decides when it runs.
type operation struct {
	fn    func(*Tx) error
	state atomic.Int32
	run   chan *Tx    // from the writer: run fn with this Tx, and answer on ran
	ran   chan result // buffered, one element
	done  chan error  // from the writer: the result of Update; buffered, one element

	result result // of the last run; the writer's field
}

// States of an operation.
const (
	queued    int32 = iota
	started         // by the writer
	abandoned       // its context ended in the queue
)

type result struct {
	err  error
	gone bool // fn panicked or called Goexit: the caller no longer waits
}

// A writer is the queue of the goroutine that writes.
type writer struct {
	mu      sync.Mutex
	wake    *sync.Cond // the queue is not empty, or stopped is set
	queue   []*operation
	stopped bool
	ended   chan struct{}
}

// start runs process, which takes a batch, whenever the queue is not empty. Operations that are
// queued during a commit are the next batch, so none waits for others to arrive.
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

// stop waits until the queue is processed. Nothing can be queued then.
func (w *writer) stop() {
	w.mu.Lock()
	w.stopped = true
	w.wake.Signal()
	w.mu.Unlock()
	<-w.ended
}

// wait returns true when the queue is not empty, and false when it is empty after stop.
func (w *writer) wait() bool {
	// Callers that were just answered call again if they get the processor. Without this, the first
	// one would have a transaction of its own (twice as many transactions with 8 callers). It costs
	// nothing if no goroutine is runnable.
	runtime.Gosched()
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queue == nil && !w.stopped {
		w.wake.Wait()
	}
	return w.queue != nil
}

// take starts the next operations that are not abandoned, up to maxBatch.
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

// call runs fn, and sends its result even if fn panics.
func (o *operation) call(tx *Tx) {
	r := result{gone: true}
	defer func() { o.ran <- r }()
	r = result{err: o.fn(tx)}
}
