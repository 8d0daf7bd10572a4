package snapshotter_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestStartWithADamagedRecord starts with an unreadable page of snapshot records: only operations that need
// the page fail.
func TestStartWithADamagedRecord(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.mismatched = true
	b.layer(t, "one", "", "content")
	for i := range 40 {
		b.prepare(t, fmt.Sprint("container-", i), "one")
	}
	require.NoError(t, b.Close())
	damageRootPage(t, b.path, "snapshots")
	b.openStore(t)
	require.NoError(t, b.start(t))
	_, err := b.Background(t.Context())
	require.NoError(t, err)
	_, err = b.Stat(t.Context(), "one")
	require.Error(t, err)
}

// damageRootPage gives the first page of a bucket an unknown type.
func damageRootPage(t *testing.T, path, bucket string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	var page int64
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		page = int64(tx.Bucket([]byte("v1")).Bucket([]byte(bucket)).RootPage())
		return nil
	}))
	require.NoError(t, db.Close())
	require.NotZero(t, page)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x40, 0}, page*int64(os.Getpagesize())+8)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
