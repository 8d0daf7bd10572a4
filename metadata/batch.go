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

// process runs a batch of operations in one bbolt transaction. It takes them from the queue once nothing is in its way: until
// then they can be abandoned. One that fails before it has written is in nobody's way. One that fails later spoils the
// transaction: it is taken out, and the others run again.
//
// An operation that failed has its answer only after the commit too: it may have failed for what another one of the batch
// did ("already exists"), and that is true only once it is committed.
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

// runBatch leaves each operation's result in it; an error is everybody's.
func (s *Store) runBatch(batch []*operation) error {
	good := slices.Clone(batch)
	for {
		btx, err := s.begin(true)
		if err != nil {
			return err
		}
		writes, spoilt, err := s.runAll(btx, good)
		if err != nil || spoilt >= 0 || writes == 0 {
			if rerr := btx.Rollback(); rerr != nil {
				return fmt.Errorf("roll back a change to %s: %w", s.path, rerr)
			}
		}
		switch {
		case err != nil:
			return err
		case spoilt >= 0:
			good = slices.Delete(good, spoilt, spoilt+1)
		case writes == 0:
			return nil
		default:
			return s.commit(btx)
		}
	}
}

// runAll runs operations one after the other and returns how much they have written, and which one has failed after
// writing, or -1.
func (s *Store) runAll(btx *bolt.Tx, ops []*operation) (writes, spoilt int, err error) {
	tx, err := s.tx(btx)
	if err != nil {
		return 0, -1, err
	}
	for i, o := range ops {
		if o.result.gone {
			continue
		}
		own := &Tx{buckets: tx.buckets, first: tx.first}
		o.run <- own
		o.result = <-o.ran
		failed := o.result.gone || o.result.err != nil
		if failed && own.writes > 0 {
			return writes, i, nil
		}
		writes += own.writes
	}
	return writes, -1, nil
}

// commit makes a transaction durable, and knows afterwards whether it is.
func (s *Store) commit(btx *bolt.Tx) error {
	id := btx.ID()
	s.gate.open()
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
		// Only the last sync can have failed: the page that makes the transaction count has been written. Going on would
		// reuse pages of the state before it, which is what the disk may still have.
		s.gate.doubt()
		return fmt.Errorf("commit to %s: %w (%w)", s.path, ErrInDoubt, err)
	case errors.As(err, new(panicked)):
		// bbolt may still hold its lock, and if not, its list of free pages lacks those that the commit took: the next one
		// would wait for ever, or write down that list.
		s.gate.doubt()
		return fmt.Errorf("commit to %s: %w", s.path, err)
	default:
		s.gate.release()
		return commitError(s.path, err)
	}
}

// panicked is the error of a commit that did not return.
type panicked struct{ error }

func (p panicked) Unwrap() error { return p.error }

// commitSafely is bbolt's Commit; a panic (it asserts on damaged pages) is an error, not the end of everybody's writer.
func commitSafely(btx *bolt.Tx) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = panicked{pageError(p)}
			defer func() { _ = recover() }() // it may not be able to do this either
			err = errors.Join(err, btx.Rollback())
		}
	}()
	return btx.Commit()
}

// visible reports whether a transaction that could not be committed is nevertheless what readers get.
func (s *Store) visible(id int) bool {
	btx, err := s.begin(false)
	if err != nil {
		return true
	}
	defer btx.Rollback() //nolint:errcheck // a read transaction has nothing to lose
	return btx.ID() >= id
}

// begin starts a bbolt transaction.
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
