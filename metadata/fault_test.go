package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// storeFile returns the descriptor of a file that this process has open.
func storeFile(t *testing.T, path string) int {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	require.NoError(t, err)
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			fd, err := strconv.Atoi(e.Name())
			require.NoError(t, err)
			return fd
		}
	}
	t.Fatalf("%s is not open", path)
	return -1
}

// full makes every write to the store fail with ENOSPC until restore is called.
func full(t *testing.T, s *Store) (restore func()) {
	t.Helper()
	fd := storeFile(t, s.path)
	saved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	dev, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Dup3(int(dev.Fd()), fd, unix.O_CLOEXEC))
	require.NoError(t, dev.Close())
	return func() {
		require.NoError(t, unix.Dup3(saved, fd, unix.O_CLOEXEC))
		require.NoError(t, unix.Close(saved))
	}
}

func TestNoSpace(t *testing.T) {
	s := furnished(t)
	update(t, s, func(tx *Tx) { require.NoError(t, tx.Create(active("before", "high", 6))) })
	before := s.Stats().Transactions
	restore := full(t, s)
	var wg sync.WaitGroup
	for i := range uint32(5) {
		wg.Go(func() {
			err := s.Update(t.Context(), func(tx *Tx) error { return tx.Create(active(fmt.Sprint("key-", i), "high", 7+i)) })
			if !errors.Is(err, errdefs.ErrResourceExhausted) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("it returned %v", err)
			}
		})
	}
	wg.Wait()
	view(t, s, func(tx *Tx) {
		require.True(t, tx.Exists("before"))
		for i := range 5 {
			require.False(t, tx.Exists(fmt.Sprint("key-", i)))
		}
	})
	restore()
	require.Equal(t, before, s.Stats().Transactions)
	update(t, s, func(tx *Tx) { require.NoError(t, tx.Create(active("key-0", "high", 7))) })
}

// An operation that fails because of another one in its batch must not report that if the batch
// fails.
func TestFailedBatchHidesDependentErrors(t *testing.T) {
	s := furnished(t)
	fail := make(chan struct{})
	s.commitTx = func(btx *bolt.Tx) error {
		select {
		case <-fail:
			return errors.Join(syscall.EIO, btx.Rollback())
		default:
			return commitSafely(btx)
		}
	}
	create := func(tx *Tx) error { return tx.Create(active("a", "high", 7)) }
	started, proceed := make(chan struct{}), make(chan struct{})
	first, errs := make(chan error, 1), make(chan error, 2)
	go func() {
		first <- s.Update(t.Context(), func(tx *Tx) error {
			close(started)
			<-proceed
			return nil
		})
	}()
	<-started
	for range 2 {
		go func() { errs <- s.Update(t.Context(), create) }()
	}
	(&held{Store: s}).queue(t, 2)
	close(fail)
	close(proceed)
	require.NoError(t, <-first)
	for range 2 {
		err := <-errs
		require.ErrorIs(t, err, syscall.EIO)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.NotErrorIs(t, err, errdefs.ErrAlreadyExists)
	}
	(&held{Store: s}).unhook()
	update(t, s, func(tx *Tx) { require.NoError(t, create(tx)) })
}

func TestInDoubt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	s.commitTx = func(btx *bolt.Tx) error { return errors.Join(commitSafely(btx), syscall.EIO) }
	err = s.Update(t.Context(), func(tx *Tx) error { return tx.SetPool(PoolRecord{ID: "p"}) })
	require.ErrorIs(t, err, ErrInDoubt)
	require.ErrorIs(t, err, syscall.EIO)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, path)
	require.Zero(t, s.Stats().Transactions)

	// All reads and writes fail from then on.
	require.ErrorIs(t, s.View(t.Context(), func(*Tx) error { panic("ran") }), ErrInDoubt)
	require.ErrorIs(t, s.Update(t.Context(), func(*Tx) error { panic("ran") }), ErrInDoubt)
	_, err = s.Check(t.Context())
	require.ErrorIs(t, err, ErrInDoubt)
	require.NoError(t, s.Close())

	s = openStore(t, path, Options{})
	view(t, s, func(tx *Tx) {
		_, err := tx.Pool()
		require.NoError(t, err)
	})
}

// bbolt asserts during a commit, and cannot roll back either. No caller waits for the lock that it
// still holds, and older content can be read.
func TestCommitPanics(t *testing.T) {
	s := furnished(t)
	var left *bolt.Tx
	s.commitTx = func(btx *bolt.Tx) error {
		left = btx
		return commitSafely(nil)
	}
	create := func(tx *Tx) error { return tx.Create(active("x", "high", 7)) }
	err := s.Update(t.Context(), create)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorContains(t, err, "thinsnap check")
	require.ErrorIs(t, s.Update(t.Context(), create), ErrInDoubt)
	view(t, s, func(tx *Tx) {
		require.True(t, tx.Exists("work"))
		require.False(t, tx.Exists("x"))
	})
	require.NoError(t, left.Rollback())
	require.ErrorIs(t, s.Update(t.Context(), create), ErrInDoubt, "its free list may lack pages")
}

// Close returns, and ends in the background when the disk continues.
func TestCloseOnAHangingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(filepath.Join(t.TempDir(), "metadata.db"), Options{})
		require.NoError(t, err)
		disk := make(chan struct{})
		s.commitTx = func(btx *bolt.Tx) error {
			<-disk
			return commitSafely(btx)
		}
		updated := make(chan error, 1)
		go func() {
			updated <- s.Update(context.Background(), func(tx *Tx) error { return tx.SetPool(PoolRecord{ID: "p"}) })
		}()
		synctest.Wait()
		begun := time.Now()
		err = s.Close()
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, s.path)
		require.Equal(t, closeWait, time.Since(begun))
		require.Equal(t, err, s.Close())
		require.ErrorIs(t, s.Update(t.Context(), func(*Tx) error { panic("ran") }), ErrClosed)

		close(disk)
		synctest.Wait()
		require.NoError(t, <-updated)
		require.ErrorIs(t, s.View(t.Context(), func(*Tx) error { panic("ran") }), ErrClosed)
	})
}

// bbolt shows a transaction before it is durable; View does not.
func TestViewWaitsForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := furnished(t)
		h := hold(s, true)
		first := h.blocked(t, "first", 6)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, s.View(ctx, func(*Tx) error { panic("ran") }), context.DeadlineExceeded)

		seen := make(chan bool, 1)
		go func() {
			_ = s.View(context.Background(), func(tx *Tx) error {
				seen <- tx.Exists("first")
				return nil
			})
		}()
		synctest.Wait()
		require.Empty(t, seen, "View did not wait")
		h.free()
		require.True(t, <-seen)
		require.NoError(t, <-first)
	})
}

// While a transaction's pages are written, the previous state can be read.
func TestViewPassesAnEarlierCommit(t *testing.T) {
	s := furnished(t)
	h := hold(s, false)
	first := h.blocked(t, "first", 6)
	view(t, s, func(tx *Tx) {
		require.True(t, tx.Exists("work"))
		require.False(t, tx.Exists("first"))
	})
	h.free()
	require.NoError(t, <-first)
}
