package boltfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// makeFile returns the path of a file that has a bucket with this number of keys.
func makeFile(t *testing.T, keys int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("b"))
		require.NoError(t, err)
		for i := range keys {
			require.NoError(t, b.Put([]byte{byte(i >> 8), byte(i)}, make([]byte, 100)))
		}
		return nil
	}))
	require.NoError(t, db.Close())
	return path
}

func count(n *int) func(tx *bolt.Tx) error {
	return func(tx *bolt.Tx) error {
		*n = 0
		return tx.Bucket([]byte("b")).ForEach(func(_, _ []byte) error { *n++; return nil })
	}
}

func TestUpdateAndView(t *testing.T) {
	path := makeFile(t, 1000)
	n := 0
	require.NoError(t, View(path, count(&n)))
	require.Equal(t, 1000, n)
	require.NoError(t, Update(path, func(tx *bolt.Tx) error { return tx.Bucket([]byte("b")).Put([]byte("x"), nil) }))
	failed := errors.New("failed")
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	require.ErrorIs(t, Update(path, func(tx *bolt.Tx) error {
		require.NoError(t, tx.DeleteBucket([]byte("b")))
		return failed
	}), failed)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoError(t, View(path, count(&n)))
	require.Equal(t, 1001, n)
	require.ErrorIs(t, View(path, func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket([]byte("c"))
		return err
	}), berrors.ErrTxNotWritable)
}

// The processor faults in the map beyond the end of the file. The file can be opened again at once.
func TestTruncatedMeanwhile(t *testing.T) {
	path := makeFile(t, 1000)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	n := 0
	require.ErrorIs(t, View(path, func(tx *bolt.Tx) error {
		require.NoError(t, os.Truncate(path, 0))
		return count(&n)(tx)
	}), ErrUnreadable)
	require.NoError(t, os.WriteFile(path, b, 0o600))
	require.NoError(t, Update(path, count(&n)))
	require.Equal(t, 1000, n)
}

// bbolt's assertion becomes an error.
func TestDamagedMeanwhile(t *testing.T) {
	path := makeFile(t, 1000)
	n := 0
	require.ErrorIs(t, View(path, func(tx *bolt.Tx) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{0x40, 0}, int64(tx.Bucket([]byte("b")).RootPage())*int64(os.Getpagesize())+8)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		return count(&n)(tx)
	}), ErrDamaged)
	require.ErrorIs(t, View(path, count(&n)), ErrDamaged)
}

func TestWithErrno(t *testing.T) {
	require.NoError(t, WithErrno(nil))
	failed := &os.PathError{Op: "sync", Path: "x", Err: syscall.EIO}
	err := errors.New("file sync error: " + failed.Error())
	require.NotErrorIs(t, err, syscall.EIO)
	require.ErrorIs(t, WithErrno(err), syscall.EIO)
	require.ErrorIs(t, WithErrno(err), err)
	require.EqualError(t, WithErrno(err), "file sync error: sync x: input/output error")
	require.Equal(t, syscall.ENOSPC, WithErrno(syscall.ENOSPC))
	other := errors.New("no such thing as an input/output error")
	require.Equal(t, other, WithErrno(other))
}

// Panics not caused by a page, and the end of the goroutine.
func TestGuardLetsOthersPass(t *testing.T) {
	require.PanicsWithValue(t, "other", func() { _, _ = Guard(func() error { panic("other") }) })
	done := make(chan bool)
	go func() {
		defer close(done)
		_, _ = Guard(func() error { runtime.Goexit(); return nil })
		done <- true
	}()
	require.False(t, <-done)
}

// badDisk fails to read one byte of a file.
type badDisk struct {
	*bytes.Reader
	at int64
}

func (d badDisk) ReadAt(b []byte, at int64) (int, error) {
	if at <= d.at && d.at < at+int64(len(b)) {
		return 0, &os.PathError{Op: "read", Path: "a.db", Err: syscall.EIO}
	}
	return d.Reader.ReadAt(b, at)
}

// TestPageOnABadDisk: an I/O error says nothing about the file's contents. No page, not even one of
// the two meta pages, may be left out instead.
func TestPageOnABadDisk(t *testing.T) {
	b, err := os.ReadFile(makeFile(t, 1000))
	require.NoError(t, err)
	size, failed := int64(os.Getpagesize()), 0
	for at := int64(20); at < int64(len(b)); at += size {
		err := Check(badDisk{bytes.NewReader(b), at}, int64(len(b)), func([]string) bool { return true })
		if err == nil {
			continue // a free page
		}
		failed++
		require.ErrorIs(t, err, ErrUnreadable)
		require.ErrorIs(t, err, syscall.EIO)
		require.NotErrorIs(t, err, ErrDamaged)
		require.ErrorIs(t, openError(err), ErrUnreadable)
	}
	require.Greater(t, failed, 10)
	require.ErrorIs(t, Check(badDisk{bytes.NewReader(b), 20}, int64(len(b)), nil), ErrUnreadable, "the first meta page")
	require.ErrorIs(t, Check(badDisk{bytes.NewReader(b), size + 20}, int64(len(b)), nil), ErrUnreadable, "the second")
}
