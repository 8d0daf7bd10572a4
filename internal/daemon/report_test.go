package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/metadata"
)

// lossyStore has n active snapshots, of which every second one may have lost writes, and returns the first
// volume. The snapshots have labels as large as an image's.
func lossyStore(t testing.TB, n uint32) (*metadata.Store, uint32) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	labels := make(map[string]string)
	for i := range 40 {
		labels[fmt.Sprintf("containerd.io/snapshot/label-%d", i)] = "sha256:1111111111111111111111111111111111111111"
	}
	var first uint32
	require.NoError(t, store.Update(context.Background(), func(tx *metadata.Tx) error {
		lease, err := tx.Lease(n)
		if err != nil {
			return err
		}
		first = lease.First
		for id := lease.First; id <= lease.Last; id++ {
			if err := tx.Create(metadata.Snapshot{
				Key: fmt.Sprintf("default/%d/box", id), Kind: snapshots.KindActive, VolumeID: id, Size: 1 << 30,
				Filesystem: "ext4", Labels: labels,
			}); err != nil {
				return err
			}
			if (id-first)%2 == 1 {
				if _, err := tx.MarkWritesLost(id); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	return store, first
}

func countsIn(t testing.TB, store *metadata.Store) admin.Volumes {
	t.Helper()
	var info admin.Info
	require.NoError(t, store.View(t.Context(), func(tx *metadata.Tx) error { return readCounts(tx, &info) }))
	return info.Devices
}

// TestLostWritesAreCounted: a snapshot that may have lost writes counts until it is removed.
func TestLostWritesAreCounted(t *testing.T) {
	store, first := lossyStore(t, 5)
	d := &Daemon{store: store}
	require.EqualValues(t, 2, countsIn(t, store).WritesLost)
	lost, err := d.writesLost(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[uint32]bool{first + 1: true, first + 3: true}, lost)

	for i, want := range []uint64{2, 1, 1, 0} {
		key := fmt.Sprintf("default/%d/box", first+uint32(i))
		require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
			_, err := tx.Remove(key, time.Now())
			return err
		}))
		require.Equal(t, want, countsIn(t, store).WritesLost, key)
	}
	lost, err = d.writesLost(t.Context())
	require.NoError(t, err)
	require.Empty(t, lost)
}

// BenchmarkReadCounts is a scrape's part of the store, with many snapshots that may have lost writes.
func BenchmarkReadCounts(b *testing.B) {
	for _, n := range []uint32{2, 2000} {
		b.Run(fmt.Sprintf("lost=%d", n/2), func(b *testing.B) {
			store, _ := lossyStore(b, n)
			for b.Loop() {
				countsIn(b, store)
			}
		})
	}
}
