package metadata

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// damagedBucket returns a store in which the first page of a bucket has an invalid type.
func damagedBucket(t *testing.T, bucket string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "metadata.db")
	require.NoError(t, os.WriteFile(path, good(t), 0o600))
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	var page int64
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		page = int64(tx.Bucket(bucketRoot).Bucket([]byte(bucket)).RootPage())
		return nil
	}))
	require.NoError(t, db.Close())
	require.NotZero(t, page)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x40, 0}, page*int64(os.Getpagesize())+8)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}

// Open does not notice the page, and no goroutine ends because of it.
func TestDamagedPageIsAnError(t *testing.T) {
	path := damagedBucket(t, "snapshots")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	walk := func(tx *Tx) error { return tx.ForEach(func(Snapshot) error { return nil }) }
	create := func(tx *Tx) error { return tx.Create(active("new", "", 7)) }
	for _, err := range []error{s.View(t.Context(), walk), s.Update(t.Context(), create)} {
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.ErrorContains(t, err, path)
	}
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(1)
		require.NoError(t, err, "operations that do not need the page work")
	})
}

// The processor faults, as when the disk fails.
func TestPageBehindTheEndIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	require.NoError(t, os.WriteFile(path, good(t), 0o600))
	s, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	require.NoError(t, os.Truncate(path, 8192))
	err = s.View(t.Context(), func(tx *Tx) error { return tx.ForEach(func(Snapshot) error { return nil }) })
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, path)
}

// A bug of the caller is not a damaged store.
func TestOtherPanicsContinue(t *testing.T) {
	s := furnished(t)
	broken := errors.New("broken")
	for _, run := range []func(func(*Tx) error) error{
		func(fn func(*Tx) error) error { return s.View(t.Context(), fn) },
		func(fn func(*Tx) error) error { return s.Update(t.Context(), fn) },
	} {
		require.PanicsWithValue(t, broken, func() { _ = run(func(*Tx) error { panic(broken) }) })
		require.Panics(t, func() {
			_ = run(func(tx *Tx) error { return tx.ForEach(func(Snapshot) error { panic(broken) }) })
		}, "called by bbolt, but not its own")
		require.Panics(t, func() { _ = run(func(*Tx) error { return (*new(func() error))() }) })
	}
}
