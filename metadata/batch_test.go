package metadata

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// A held store stops in each commit until it may proceed, so that other operations queue up
// meanwhile.
type held struct {
	*Store
	committing chan struct{} // receives from each commit that has begun
	proceed    chan struct{} // sends to each commit
}

// hold stops the commits of s before bbolt commits, or after it.
func hold(s *Store, after bool) *held {
	h := &held{Store: s, committing: make(chan struct{}), proceed: make(chan struct{})}
	s.exclusive.Lock() // the writer must not run
	defer s.exclusive.Unlock()
	s.commitTx = func(btx *bolt.Tx) error {
		if after {
			err := commitSafely(btx)
			h.committing <- struct{}{}
			<-h.proceed
			return err
		}
		h.committing <- struct{}{}
		<-h.proceed
		return commitSafely(btx)
	}
	return h
}

// free lets the stopped commit and later ones proceed.
func (h *held) free() {
	h.proceed <- struct{}{}
	h.unhook()
}

// freeAll lets commits proceed until the callers are done.
func (h *held) freeAll(callers *sync.WaitGroup) {
	h.proceed <- struct{}{}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		callers.Wait()
	}()
	for {
		select {
		case <-h.committing:
			h.proceed <- struct{}{}
		case <-finished:
			h.unhook()
			return
		}
	}
}

func (h *held) unhook() {
	h.exclusive.Lock()
	defer h.exclusive.Unlock()
	h.commitTx = commitSafely
}

// queue waits until n operations are in the queue.
func (h *held) queue(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		h.writer.mu.Lock()
		defer h.writer.mu.Unlock()
		return len(h.writer.queue) == n
	}, 10*time.Second, 100*time.Microsecond)
}

// blocked starts an Update of h, and returns when its commit is stopped.
func (h *held) blocked(t *testing.T, key string, device uint32) (done chan error) {
	t.Helper()
	done = make(chan error, 1)
	go func() {
		done <- h.Update(context.Background(), func(tx *Tx) error { return tx.Create(active(key, "high", device)) })
	}()
	<-h.committing
	return done
}

func TestGroupCommit(t *testing.T) {
	s := furnished(t)
	h := hold(s, false)
	first := h.blocked(t, "first", 6)
	before := s.Stats()
	var wg sync.WaitGroup
	for i := range uint32(50) {
		wg.Go(func() {
			if err := s.Update(t.Context(), func(tx *Tx) error {
				return tx.Create(active(fmt.Sprint("key-", i), "high", 7+i))
			}); err != nil {
				t.Error(err)
			}
		})
	}
	h.queue(t, 50)
	h.freeAll(&wg)
	require.NoError(t, <-first)
	after := s.Stats()
	require.EqualValues(t, 50, after.Operations-before.Operations)
	require.EqualValues(t, 2, after.Transactions-before.Transactions, "one for the first, one for all others")
}

func TestConcurrentUpdates(t *testing.T) {
	s := newStore(t, Options{})
	const workers, each = 32, 20
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(workers * each)
		require.NoError(t, err)
	})
	before := s.Stats()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				id := uint32(1 + w*each + i)
				key := fmt.Sprint("key-", id)
				if err := s.Update(t.Context(), func(tx *Tx) error { return tx.Create(active(key, "", id)) }); err != nil {
					t.Error(err)
				}
				if err := s.View(t.Context(), func(tx *Tx) error {
					_, err := tx.Get(key)
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	after := s.Stats()
	require.EqualValues(t, workers*each, after.Operations-before.Operations)
	require.EqualValues(t, workers*each, after.Reads-before.Reads)
	require.Less(t, after.Transactions-before.Transactions, uint64(workers*each/3))
	view(t, s, func(tx *Tx) {
		counts, err := tx.CountByKind()
		require.NoError(t, err)
		require.Equal(t, workers*each, counts.Active)
	})
}

func TestBatchIsBounded(t *testing.T) {
	var w writer
	var sizes []int
	w.wake = sync.NewCond(&w.mu)
	for range maxBatch + 10 {
		w.queue = append(w.queue, &operation{})
	}
	w.queue[3].state.Store(abandoned)
	for range 2 {
		sizes = append(sizes, len(w.take()))
	}
	require.Equal(t, []int{maxBatch, 9}, sizes)
	require.Nil(t, w.take())
	w.stopped = true
	require.False(t, w.wait())
}

// mixed runs functions in one batch, in this order. It returns how often each ran, and the error of
// each Update.
func mixed(t *testing.T, s *Store, fns ...func(*Tx) error) (runs []int, errs []error) {
	t.Helper()
	h := hold(s, false)
	first := h.blocked(t, "first", 60)
	runs, errs = make([]int, len(fns)), make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					errs[i] = fmt.Errorf("panicked: %v", p)
				}
			}()
			errs[i] = errors.New("no result") // stays if Goexit ends the goroutine
			errs[i] = s.Update(t.Context(), func(tx *Tx) error {
				runs[i]++
				return fn(tx)
			})
		})
		h.queue(t, i+1)
	}
	h.freeAll(&wg)
	require.NoError(t, <-first)
	return runs, errs
}

func TestBatchWithFailures(t *testing.T) {
	broken := errors.New("broken")
	create := func(key string, device uint32) func(*Tx) error {
		return func(tx *Tx) error { return tx.Create(active(key, "high", device)) }
	}
	for name, tc := range map[string]struct {
		bad     func(*Tx) error
		want    func(t *testing.T, err error)
		runs    []int // of: create a, bad, create b
		present bool  // whether bad's key exists afterwards
	}{
		"before writing": {
			bad:  func(*Tx) error { return broken },
			want: func(t *testing.T, err error) { require.Equal(t, broken, err) },
			runs: []int{1, 1, 1},
		},
		"in its method": {
			bad:  create("a", 9),
			want: func(t *testing.T, err error) { require.ErrorIs(t, err, errdefs.ErrAlreadyExists) },
			runs: []int{1, 1, 1},
		},
		"after writing": {
			bad: func(tx *Tx) error {
				require.NoError(t, create("x", 9)(tx))
				return broken
			},
			want: func(t *testing.T, err error) { require.Equal(t, broken, err) },
			runs: []int{2, 1, 1},
		},
		"panic before writing": {
			bad:  func(*Tx) error { panic("oh") },
			want: func(t *testing.T, err error) { require.EqualError(t, err, "panicked: oh") },
			runs: []int{1, 1, 1},
		},
		"panic after writing": {
			bad: func(tx *Tx) error {
				require.NoError(t, create("x", 9)(tx))
				panic("oh")
			},
			want: func(t *testing.T, err error) { require.EqualError(t, err, "panicked: oh") },
			runs: []int{2, 1, 1},
		},
		"exit": {
			bad: func(tx *Tx) error {
				require.NoError(t, create("x", 9)(tx))
				runtime.Goexit()
				return nil
			},
			want: func(t *testing.T, err error) { require.EqualError(t, err, "no result") },
			runs: []int{2, 1, 1},
		},
		"nothing": {
			bad:     create("x", 9),
			want:    func(t *testing.T, err error) { require.NoError(t, err) },
			runs:    []int{1, 1, 1},
			present: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := furnished(t)
			before := s.Stats().Transactions
			runs, errs := mixed(t, s, create("a", 7), tc.bad, create("b", 8))
			require.NoError(t, errs[0])
			tc.want(t, errs[1])
			require.NoError(t, errs[2])
			require.Equal(t, tc.runs, runs)
			require.Equal(t, before+2, s.Stats().Transactions)
			view(t, s, func(tx *Tx) {
				require.True(t, tx.Exists("a"))
				require.True(t, tx.Exists("b"))
				require.Equal(t, tc.present, tx.Exists("x"))
			})
		})
	}
}

func TestBatchWhereAllFail(t *testing.T) {
	s := furnished(t)
	before := s.Stats().Transactions
	bad := func(tx *Tx) error {
		if err := tx.Create(active("x", "high", 9)); err != nil {
			return err
		}
		return errors.New("broken")
	}
	runs, errs := mixed(t, s, bad, bad, bad)
	for _, err := range errs {
		require.EqualError(t, err, "broken", "an operation sees no other one's writes")
	}
	require.Equal(t, []int{1, 1, 1}, runs)
	require.Equal(t, before+1, s.Stats().Transactions)
}

func TestPanicAlone(t *testing.T) {
	s := furnished(t)
	require.PanicsWithValue(t, "oh", func() {
		_ = s.Update(t.Context(), func(tx *Tx) error {
			require.NoError(t, tx.Create(active("x", "high", 9)))
			panic("oh")
		})
	})
	update(t, s, func(tx *Tx) { require.False(t, tx.Exists("x")) })
}

func TestUpdateCancelledInTheQueue(t *testing.T) {
	s := furnished(t)
	h := hold(s, false)
	first := h.blocked(t, "first", 6)
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	var ran atomic.Bool
	go func() {
		second <- s.Update(ctx, func(tx *Tx) error {
			ran.Store(true)
			return tx.Create(active("second", "high", 7))
		})
	}()
	h.queue(t, 1)
	cancel()
	require.ErrorIs(t, <-second, context.Canceled)
	h.free()
	require.NoError(t, <-first)
	update(t, s, func(tx *Tx) { require.False(t, tx.Exists("second")) })
	require.False(t, ran.Load())
	require.ErrorIs(t, s.Update(ctx, func(*Tx) error { panic("ran") }), context.Canceled)
}

func TestUpdateCancelledOnceBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := furnished(t)
		h := hold(s, false)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.Update(ctx, func(tx *Tx) error { return tx.Create(active("new", "high", 6)) })
		}()
		<-h.committing
		cancel()
		synctest.Wait()
		require.Empty(t, done, "it returned before its commit")
		h.free()
		require.NoError(t, <-done)
		view(t, s, func(tx *Tx) { require.True(t, tx.Exists("new")) })
	})
}

func TestCloseFinishesQueuedUpdates(t *testing.T) {
	s := furnished(t)
	h := hold(s, false)
	first := h.blocked(t, "first", 6)
	second := make(chan error, 1)
	go func() {
		second <- s.Update(context.Background(), func(tx *Tx) error { return tx.Create(active("second", "first", 7)) })
	}()
	h.queue(t, 1)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	require.Eventually(t, func() bool {
		h.writer.mu.Lock()
		defer h.writer.mu.Unlock()
		return h.writer.stopped
	}, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, s.Update(t.Context(), func(*Tx) error { panic("ran") }), ErrClosed)
	h.proceed <- struct{}{}
	require.NoError(t, <-first)
	require.ErrorIs(t, <-second, errdefs.ErrInvalidArgument, "it ran: its parent is not committed")
	require.NoError(t, <-closed)
}
