package metadata

import (
	"encoding/binary"
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
	path, page := bucketRootPage(t, bucket)
	writeAt(t, path, []byte{0x40, 0}, page*int64(os.Getpagesize())+8)
	return path
}

func writeAt(t *testing.T, path string, b []byte, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// bucketRootPage returns a store, and the number of the first page of a bucket.
func bucketRootPage(t *testing.T, bucket string) (path string, page int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "metadata.db")
	require.NoError(t, os.WriteFile(path, good(t), 0o600))
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		page = int64(tx.Bucket(bucketRoot).Bucket([]byte(bucket)).RootPage())
		return nil
	}))
	require.NoError(t, db.Close())
	require.NotZero(t, page)
	return path, page
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

// A damaged page number behind the end of the file, but inside its map, looks like a failing disk.
// The error names the command that tells them apart.
func TestPageNumberBehindTheEnd(t *testing.T) {
	path, page := bucketRootPage(t, "snapshots")
	info, err := os.Stat(path)
	require.NoError(t, err)
	const firstChild = 16 + 8 // after the page's header, and the position and size of its key
	behind := binary.NativeEndian.AppendUint64(nil, uint64(info.Size())/uint64(os.Getpagesize())+16)
	writeAt(t, path, behind, page*int64(os.Getpagesize())+firstChild)

	s, err := Open(path, Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	err = s.View(t.Context(), func(tx *Tx) error { return tx.ForEach(func(Snapshot) error { return nil }) })
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "shows no I/O error, stop thinsnap, and run `thinsnap check`")
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, problems)
	require.True(t, problems[0].Pages)
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
