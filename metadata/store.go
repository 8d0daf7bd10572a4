package metadata

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A Store is an open metadata store. It is safe for concurrent use.
type Store struct {
	path     string
	readOnly bool
	db       *bolt.DB
	file     *os.File // of db

	gate      gate
	writer    writer
	exclusive lock                 // held while a batch is processed, and by a check
	commitTx  func(*bolt.Tx) error // commitSafely, except in tests

	operations, transactions, reads atomic.Uint64
	commitTime                      atomic.Int64 // a time.Duration

	closing  sync.Once
	closeErr error
}

// Stats are counts since the store was opened, and its size.
type Stats struct {
	Operations   uint64 // calls of Update that ran
	Transactions uint64 // committed bbolt transactions
	Reads        uint64 // calls of View

	CommitTime time.Duration // of all commits together, nearly all of it spent in syncs
	FileBytes  uint64        // current size of the file; 0 if it cannot be read
}

// Stats returns the counts so far.
func (s *Store) Stats() Stats {
	stats := Stats{
		Operations: s.operations.Load(), Transactions: s.transactions.Load(), Reads: s.reads.Load(),
		CommitTime: time.Duration(s.commitTime.Load()),
	}
	if info, err := s.file.Stat(); err == nil {
		stats.FileBytes = uint64(info.Size())
	}
	return stats
}

// Path returns the path of the store's file, as it was opened.
func (s *Store) Path() string { return s.path }

// View calls fn with a read transaction, and returns its error. It waits only for an Update that is
// being synced and is already visible.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	btx, err := s.begin(false)
	if err != nil {
		return err
	}
	defer btx.Rollback() //nolint:errcheck // a read transaction has nothing to lose
	if err := s.gate.wait(ctx, btx.ID()); err != nil {
		return err
	}
	s.reads.Add(1)
	return s.guard(func() error {
		tx, err := s.tx(btx)
		if err != nil {
			return err
		}
		return fn(tx)
	})
}

// Update calls fn with a write transaction, commits it, and returns the error of fn or of the
// commit. When it returns nil, the changes of fn are on stable storage; otherwise fn has changed
// nothing (but see ErrInDoubt).
//
// fn runs on the goroutine of the caller. It may run several times, and must be repeatable. If it
// panics, its changes are dropped, and the panic continues in the caller.
//
// If ctx ends while the call is queued, Update returns and fn does not run. Later, Update waits for
// the commit even if ctx ends.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if s.readOnly {
		return fmt.Errorf("%s is open read-only: %w", s.path, errdefs.ErrFailedPrecondition)
	}
	return s.writer.do(ctx, func(tx *Tx) error { return s.guard(func() error { return fn(tx) }) })
}

// closeWait bounds Close, because a disk may never answer.
const closeWait = 10 * time.Second

// Close finishes the Updates that were called, waits for Views, and closes the file. Later Updates
// and Views return ErrClosed. After 10 seconds Close returns an Unavailable error, and continues in
// the background, with the file locked. A second Close returns the same error.
func (s *Store) Close() error {
	s.closing.Do(func() {
		closed := make(chan error, 1)
		go func() { closed <- s.close() }()
		select {
		case s.closeErr = <-closed:
		case <-time.After(closeWait):
			s.closeErr = fmt.Errorf("close %s: operations did not end within %v, and go on in the background "+
				"(is its disk hanging?): %w",
				s.path, closeWait, errdefs.ErrUnavailable)
		}
	})
	return s.closeErr
}

func (s *Store) close() error {
	if !s.readOnly {
		s.writer.stop()
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close %s: %w", s.path, err)
	}
	return nil
}

func (s *Store) tx(btx *bolt.Tx) (*Tx, error) {
	b, err := openBuckets(btx)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	return &Tx{buckets: b}, nil
}
