package check_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/metadata"
)

// storeOf creates a store with 500 active snapshots, and applies change with bolt.
func storeOf(t *testing.T, change func(tx *bolt.Tx) error) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "metadata.db")
	store, err := metadata.Open(path, metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		lease, err := tx.Lease(500)
		if err != nil {
			return err
		}
		for id := lease.First; id <= lease.Last; id++ {
			if err := tx.Create(metadata.Snapshot{
				Key: fmt.Sprintf("snapshot-%d", id), Kind: snapshots.KindActive, VolumeID: id,
				Size: 1 << 20, Filesystem: "ext4", Created: time.Unix(1000, 0), Updated: time.Unix(1000, 0),
			}); err != nil {
				return err
			}
		}
		return tx.SetPool(metadata.PoolRecord{ID: "p", Mode: "loop", Complete: true})
	}))
	require.NoError(t, store.Close())
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(change))
	require.NoError(t, db.Close())
	return path
}

// findingsOf checks a store, with a mount of its volume 12.
func findingsOf(t *testing.T, path string) []check.Finding {
	t.Helper()
	store, err := metadata.Open(path, metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	mounts := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(mounts, "12"), 0o700))
	r, err := check.Run(t.Context(), check.Sources{Store: store, MountDir: mounts})
	require.NoError(t, err)
	require.Empty(t, r.Pending)
	for _, f := range r.Findings {
		require.Equal(t, check.KindStore, f.Kind, f.Text)
	}
	return r.Findings
}

// TestDamagedStore: the report has the damage only. bbolt must not read the damaged pages, because
// it would panic.
func TestDamagedStore(t *testing.T) {
	var page int64
	path := storeOf(t, func(tx *bolt.Tx) error {
		page = int64(tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).RootPage())
		return nil
	})
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x40, 0}, page*int64(os.Getpagesize())+8)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	findings := findingsOf(t, path)
	require.Len(t, findings, 2)
	require.Contains(t, findings[0].Text, fmt.Sprintf("page %d is neither branch nor leaf", page))
	require.Empty(t, findings[0].Repair)
	require.Contains(t, findings[1].Text, "cannot be read completely")
}

// TestUnreadableRecord: mounts of snapshots after the unreadable record must not look unused.
func TestUnreadableRecord(t *testing.T) {
	findings := findingsOf(t, storeOf(t, func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).Put([]byte("a"), []byte{99})
	}))
	require.Len(t, findings, 2)
	require.Equal(t, `snapshot "a"`, findings[0].Subject)
	require.Contains(t, findings[1].Text, "cannot be read completely")
}
