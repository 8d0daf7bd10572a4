package metadata

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// process runs a batch of operations in one bbolt transaction. It takes the batch under the lock:
// until then callers can abandon their operations. If an operation fails after a write, the
// transaction is rolled back, and the others run again.
//
// A failed operation, too, is answered after the commit: its cause may be another operation of the
// batch ("already exists"), which is not durable before.
func (s *Store) process() {
	s.exclusive.Lock()
	defer s.exclusive.Unlock()
	batch := s.writer.take()
	if batch == nil {
		return
	}
	s.operations.Add(uint64(len(batch)))

	err := s.runBatch(batch)
	for _, o := range batch {
		switch {
		case o.result.gone:
		case err != nil:
			o.done <- err
		default:
			o.done <- o.result.err
		}
	}
}

// runBatch sets the result of each operation. An error applies to all of them.
func (s *Store) runBatch(batch []*operation) error {
	good := slices.Clone(batch)
	for {
		btx, err := s.begin(true)
		if err != nil {
			return err
		}
		writes, failed, err := s.runAll(btx, good)
		if err != nil || failed >= 0 || writes == 0 {
			if rerr := btx.Rollback(); rerr != nil {
				return fmt.Errorf("roll back a change to %s: %w", s.path, rerr)
			}
		}
		switch {
		case err != nil:
			return err
		case failed >= 0:
			good = slices.Delete(good, failed, failed+1)
		case writes == 0:
			return nil
		default:
			return s.commit(btx)
		}
	}
}

// runAll runs the operations in order. It returns the number of their writes, and the index of the
// operation that failed after a write, or -1.
func (s *Store) runAll(btx *bolt.Tx, ops []*operation) (writes, failed int, err error) {
	tx, err := s.tx(btx)
	if err != nil {
		return 0, -1, err
	}
	for i, o := range ops {
		if o.result.gone {
			continue
		}
		own := &Tx{buckets: tx.buckets}
		o.run <- own
		o.result = <-o.ran
		failed := o.result.gone || o.result.err != nil
		if failed && own.writes > 0 {
			return writes, i, nil
		}
		writes += own.writes
	}
	if writes == 0 {
		return 0, -1, nil
	}
	return writes, -1, tx.upgrade()
}

// commit makes a transaction durable, and updates the gate.
func (s *Store) commit(btx *bolt.Tx) error {
	id := btx.ID()
	s.gate.begin()
	// gofail: var beforeStoreSync struct{}
	begun := time.Now()
	err := s.commitTx(btx)
	switch {
	case err == nil:
		// gofail: var afterStoreSync struct{}
		s.transactions.Add(1)
		s.commitTime.Add(int64(time.Since(begun)))
		s.gate.done(id)
		return nil
	case s.visible(id):
		// The meta page was written, so only the last sync can have failed. Another transaction
		// would reuse pages of the previous state, which the disk may still need.
		s.gate.doubt()
		return fmt.Errorf("commit to %s: %w (%w)", s.path, ErrInDoubt, err)
	case errors.As(err, new(panicked)):
		// bbolt may still hold its lock, or its free list may lack pages that the commit took. The
		// next commit would hang, or write that list.
		s.gate.doubt()
		return fmt.Errorf("commit to %s: %w", s.path, err)
	default:
		s.gate.release()
		return commitError(s.path, err)
	}
}

// panicked is the error of a commit that panicked.
type panicked struct{ error }

func (p panicked) Unwrap() error { return p.error }

// commitSafely commits, and turns a panic (bbolt asserts on damaged pages) into an error, so that
// the writer continues.
func commitSafely(btx *bolt.Tx) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = panicked{pageError(p)}
			defer func() { _ = recover() }() // the rollback may panic as well
			err = errors.Join(err, btx.Rollback())
		}
	}()
	return btx.Commit()
}

// visible reports whether readers see a transaction whose commit failed.
func (s *Store) visible(id int) bool {
	btx, err := s.begin(false)
	if err != nil {
		return true
	}
	defer btx.Rollback() //nolint:errcheck // a read transaction has nothing to lose
	return btx.ID() >= id
}

func (s *Store) begin(write bool) (*bolt.Tx, error) {
	if write && s.gate.doubtful() {
		return nil, ErrInDoubt
	}
	btx, err := s.db.Begin(write)
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return nil, ErrClosed
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	return btx, nil
}
