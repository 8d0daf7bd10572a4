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
	first    uint32
	readOnly bool
	db       *bolt.DB
	file     *os.File // the db's

	gate      gate
	writer    writer
	exclusive lock                 // held by a batch that is being processed, and by a check
	commitTx  func(*bolt.Tx) error // commitSafely, but for tests

	operations, transactions, reads atomic.Uint64
	commitTime                      atomic.Int64 // a time.Duration

	closing  sync.Once
	closeErr error
}

// Stats count what a store has done since it was opened.
type Stats struct {
	Operations   uint64 // calls of Update that ran
	Transactions uint64 // bbolt transactions that were committed
	Reads        uint64 // calls of View

	CommitTime time.Duration // that the commits of these transactions took, nearly all of it for the disk
	FileBytes  uint64        // size of the file as it is now; 0 if that cannot be told
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

// View calls fn with a transaction that sees the store as it is now, and returns its error. It does not wait for Updates,
// except for one that is just being synced when its change can already be seen.
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

// Update calls fn with a transaction that may write, commits it, and returns fn's error or that of the commit. When it
// returns nil, what fn did is on stable storage; otherwise, fn has done nothing (but see ErrInDoubt).
//
// fn runs on the goroutine that called Update; it may run several times, and so must be repeatable. When it panics, nothing
// of it is kept, and the panic goes on to the caller of Update.
//
// While it has not begun, Update returns when ctx ends, and fn will not run. Once begun, it is carried through whatever
// becomes of ctx.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if s.readOnly {
		return fmt.Errorf("%s is open for reading only: %w", s.path, errdefs.ErrFailedPrecondition)
	}
	return s.writer.do(ctx, func(tx *Tx) error { return s.guard(func() error { return fn(tx) }) })
}

// closeWait bounds how long Close waits: a disk may never answer.
const closeWait = 10 * time.Second

// Close carries through what Update has been called for, waits for Views, and closes the file. What is called later
// returns ErrClosed. If that takes longer than 10 seconds, Close leaves it to go on in the background, with the file locked,
// and returns an error that is Unavailable. A second Close returns what the first did.
func (s *Store) Close() error {
	s.closing.Do(func() {
		closed := make(chan error, 1)
		go func() { closed <- s.close() }()
		select {
		case s.closeErr = <-closed:
		case <-time.After(closeWait):
			s.closeErr = fmt.Errorf("closing %s: what is under way has not ended within %v, and is left behind; does its disk hang?: %w",
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
		return fmt.Errorf("closing %s: %w", s.path, err)
	}
	return nil
}

func (s *Store) tx(btx *bolt.Tx) (*Tx, error) {
	b, err := openBuckets(btx)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	return &Tx{buckets: b, first: s.first}, nil
}
