package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

func TestOpenCreatesAndReopens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(PoolRecord{ID: "p", Created: noon})) })
	require.NoError(t, s.Close())

	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
	all, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, all, 1, "nothing else is left in the directory")

	before, err := os.ReadFile(path)
	require.NoError(t, err)
	s = openStore(t, path, Options{})
	view(t, s, func(tx *Tx) {
		p, err := tx.Pool()
		require.NoError(t, err)
		require.Equal(t, PoolRecord{ID: "p", Created: noon}, p)
	})
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, before, after, "opening changes nothing")
}

func TestOpenRemovesTemporaryFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	require.NoError(t, os.WriteFile(path+".new-123", []byte("half"), 0o600))
	require.NoError(t, os.WriteFile(path+".backup", []byte("not ours"), 0o600))
	openStore(t, path, Options{})
	require.NoFileExists(t, path+".new-123")
	require.FileExists(t, path+".backup")
}

func TestOpenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "metadata.db")
		first := openStore(t, path, Options{})
		for _, readOnly := range []bool{false, true} {
			begin := time.Now()
			_, err := Open(path, Options{LockTimeout: time.Second, ReadOnly: readOnly})
			require.ErrorIs(t, err, ErrLocked)
			require.ErrorContains(t, err, path)
			require.InDelta(t, time.Second, time.Since(begin), float64(lockPoll))
		}

		// Closing the store releases the lock.
		time.AfterFunc(time.Second, func() { _ = first.Close() })
		openStore(t, path, Options{LockTimeout: 10 * time.Second})
	})
}

func TestOpenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		won  []*Store
		errs []error
	)
	for range 8 {
		wg.Go(func() {
			s, err := Open(path, Options{LockTimeout: 200 * time.Millisecond})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				won = append(won, s)
			}
		})
	}
	wg.Wait()
	require.Len(t, won, 1)
	for _, err := range errs {
		require.ErrorIs(t, err, ErrLocked)
	}
	require.NoError(t, won[0].Close())
}

func TestOpenReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	_, err := Open(path, Options{ReadOnly: true})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoFileExists(t, path)

	s, err := Open(path, Options{})
	require.NoError(t, err)
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(PoolRecord{ID: "p"})) })
	require.NoError(t, s.Close())

	s = openStore(t, path, Options{ReadOnly: true})
	openStore(t, path, Options{ReadOnly: true, LockTimeout: time.Millisecond}) // readers share the lock
	view(t, s, func(tx *Tx) {
		_, err := tx.Pool()
		require.NoError(t, err)
	})
	err = s.Update(t.Context(), func(*Tx) error { panic("ran") })
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}

func TestOpenWithoutDirectory(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "no", "such", "directory"), Options{})
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestOpenFollowsNoLink(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere.db")
	s, err := Open(elsewhere, Options{})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	path := filepath.Join(t.TempDir(), "metadata.db")
	require.NoError(t, os.Symlink(elsewhere, path))
	for _, readOnly := range []bool{false, true} {
		_, err := Open(path, Options{ReadOnly: readOnly})
		require.ErrorIs(t, err, syscall.ELOOP)
		require.ErrorContains(t, err, path)
	}
}

// good returns the file of a store with some thousand snapshots.
func good(t *testing.T) []byte {
	path := filepath.Join(t.TempDir(), "good.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	fill(t, s, 2000)
	require.NoError(t, s.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func otherBolt(t *testing.T, fn func(*bolt.Tx) error) []byte {
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(fn))
	require.NoError(t, db.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func TestOpenRefuses(t *testing.T) {
	whole := good(t)
	wiped := func(from, to int) []byte {
		b := append([]byte(nil), whole...)
		clear(b[from:to])
		return b
	}
	for name, tc := range map[string]struct {
		content []byte
		want    error
	}{
		"empty":             {nil, ErrCorrupt},
		"text":              {[]byte("not a store at all\n"), ErrCorrupt},
		"zeros":             {make([]byte, 1<<20), ErrCorrupt},
		"no meta pages":     {wiped(0, 8192), ErrCorrupt},
		"cut to meta pages": {whole[:8192], ErrCorrupt},
		"cut in half":       {whole[:len(bytes.TrimRight(whole, "\x00"))/2/4096*4096], ErrCorrupt},
		"cut to one page":   {whole[:4096], ErrCorrupt},
		"wiped behind meta": {wiped(8192, len(whole)), ErrCorrupt},
		"containerd's": {otherBolt(t, func(tx *bolt.Tx) error {
			b, err := tx.CreateBucket([]byte("v1"))
			if err != nil {
				return err
			}
			_, err = b.CreateBucket([]byte("snapshots"))
			return err
		}), ErrCorrupt},
		"another bbolt file": {otherBolt(t, func(*bolt.Tx) error { return nil }), ErrCorrupt},
		"newer": {otherBolt(t, func(tx *bolt.Tx) error {
			root, err := tx.CreateBucket(bucketRoot)
			if err != nil {
				return err
			}
			meta, err := root.CreateBucket([]byte("meta"))
			if err != nil {
				return err
			}
			if err := meta.Put(keyFormat, []byte(formatName)); err != nil {
				return err
			}
			return meta.Put(keySchema, binary.AppendUvarint(nil, schemaVersion+1))
		}), ErrNewer},
	} {
		t.Run(name, func(t *testing.T) {
			for _, readOnly := range []bool{true, false} {
				path := filepath.Join(t.TempDir(), "metadata.db")
				require.NoError(t, os.WriteFile(path, tc.content, 0o600))
				_, err := Open(path, Options{ReadOnly: readOnly})
				require.ErrorIs(t, err, tc.want)
				require.ErrorContains(t, err, path)
				if name == "newer" {
					require.ErrorContains(t, err, "it has format 6, but this thinsnap knows only formats up to 5")
				}
				after, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, sha256.Sum256(tc.content), sha256.Sum256(after), "the file has been changed")

				// The file is neither locked nor open.
				require.NoError(t, os.WriteFile(path, whole, 0o600))
				s, err := Open(path, Options{ReadOnly: readOnly})
				require.NoError(t, err)
				problems, err := s.Check(context.Background())
				require.NoError(t, err)
				require.Empty(t, problems)
				require.NoError(t, s.Close())
			}
		})
	}
}

// A store of the first format keeps that until a change is stored. So the older thinsnap can open it
// again after a start without changes.
func TestUpgrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	s := openStore(t, path, Options{})
	fill(t, s, 10)
	require.NoError(t, s.Close())
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketRoot).Bucket([]byte("meta")).Put(keySchema, []byte{1})
	}))
	require.NoError(t, db.Close())

	schema := func() (version uint64) {
		s := openStore(t, path, Options{ReadOnly: true})
		view(t, s, func(tx *Tx) { version, err = schemaOf(tx.buckets.meta) })
		require.NoError(t, err)
		require.NoError(t, s.Close())
		return version
	}
	s = openStore(t, path, Options{})
	require.NoError(t, s.Update(t.Context(), func(*Tx) error { return nil }))
	require.NoError(t, s.Close())
	require.EqualValues(t, 1, schema())

	s = openStore(t, path, Options{})
	require.NoError(t, s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Lease(1)
		return err
	}))
	require.NoError(t, s.Close())
	require.EqualValues(t, schemaRecords, schema())

	s = openStore(t, path, Options{})
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient("", ClientRecord{Number: 1})) })
	require.NoError(t, s.Close())
	require.EqualValues(t, schemaRecords, schema(), "older thinsnaps can use a store with one client")

	s = openStore(t, path, Options{})
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient("k3s", ClientRecord{Number: 1})) })
	require.NoError(t, s.Close())
	require.EqualValues(t, schemaVersion, schema(), "older thinsnaps must refuse a store with several")
}

// A crash tore the write of the other meta page.
func TestOpenWithOneMetaPage(t *testing.T) {
	whole := good(t)
	for page := range 2 {
		b := append([]byte(nil), whole...)
		clear(b[page*4096+16 : page*4096+64])
		path := filepath.Join(t.TempDir(), "metadata.db")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		openStore(t, path, Options{})
	}
}
