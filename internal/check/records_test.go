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

// TestDamagedStore: the report says so, and nothing else; bbolt, which would panic, does not see it.
func TestDamagedStore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "metadata.db")
	store, err := metadata.Open(path, metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		lease, err := tx.Lease(500)
		if err != nil {
			return err
		}
		for id := lease.First; id <= lease.Last; id++ {
			if err := tx.Create(metadata.Snapshot{
				Key: fmt.Sprintf("snapshot-%d", id), Kind: snapshots.KindActive, Device: id,
				Size: 1 << 20, Filesystem: "ext4", Created: time.Unix(1000, 0), Updated: time.Unix(1000, 0),
			}); err != nil {
				return err
			}
		}
		return tx.SetPool(metadata.PoolRecord{ID: "p", Mode: "loop", Formed: true})
	}))
	require.NoError(t, store.Close())

	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	var page int64
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		page = int64(tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).RootPage())
		return nil
	}))
	require.NoError(t, db.Close())
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x40, 0}, page*int64(os.Getpagesize())+8)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	store, err = metadata.Open(path, metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "12"), 0o700))
	r, err := check.Run(t.Context(), check.Sources{Store: store, MountDir: dir})
	require.NoError(t, err)
	require.Len(t, r.Findings, 1)
	require.Equal(t, check.KindStore, r.Findings[0].Kind)
	require.Contains(t, r.Findings[0].Text, fmt.Sprintf("page %d is neither branch nor leaf", page))
	require.Empty(t, r.Findings[0].Repair)
	require.Empty(t, r.Pending)
}
