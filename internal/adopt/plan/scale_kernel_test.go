package plan_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// TestPlanOfManySnapshots plans 10,000 containers of one image in a pool of the kernel. It writes
// their records in one transaction, because containerd would sync each.
func TestPlanOfManySnapshots(t *testing.T) {
	dmtest.RequireThorough(t)
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	const all = 10_000
	pool := dmpool.NewWith(t, dmpool.Options{Dir: t.TempDir(), DataBytes: 64 << 20, MetadataBytes: 64 << 20, ZeroBlocks: true})
	n := nodeOn(t, pool.Pool, pool.Control, pool.DataFile, pool.MetadataFile)
	n.start()
	n.layer("default", "image", "")
	parent := n.backend("default", "image")
	n.stop()
	origin := n.device(parent)

	var devices []builtin.Device
	store, err := storage.NewMetaStore(filepath.Join(n.builtinRoot(), "metadata.db"))
	require.NoError(t, err)
	require.NoError(t, store.WithTransaction(t.Context(), true, func(ctx context.Context) error {
		for i := range all {
			s, err := storage.CreateSnapshot(ctx, snapshots.KindActive, fmt.Sprintf("default/%d/box", 10+i), parent)
			if err != nil {
				return err
			}
			devices = append(devices, builtin.Device{
				Name: n.Name() + "-snap-" + s.ID, ID: uint32(100 + i), Bytes: origin.Bytes, Parent: origin.Name, State: builtin.StateResumed,
			})
		}
		return nil
	}))
	require.NoError(t, store.Close())
	n.editPool(func(tx *bolt.Tx) error {
		for _, d := range devices {
			put(t, tx, d)
		}
		return nil
	})
	n.edit(filepath.Join(n.root, "io.containerd.metadata.v1.bolt", "meta.db"), func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1")).Bucket([]byte("default")).Bucket([]byte("snapshots")).Bucket([]byte("devmapper"))
		for i := range all {
			record, err := b.CreateBucket([]byte("box" + strconv.Itoa(i)))
			require.NoError(t, err)
			require.NoError(t, record.Put([]byte("name"), fmt.Appendf(nil, "default/%d/box", 10+i)))
			require.NoError(t, record.Put([]byte("parent"), []byte("image")))
		}
		return nil
	})
	for _, d := range devices {
		require.NoError(t, n.CreateSnap(thin.ID(d.ID), thin.ID(origin.ID)))
	}

	begun := time.Now()
	p := n.make(n.options())
	t.Logf("a plan of %d snapshots, and digests of all before and after: %v", len(p.Rows), time.Since(begun))
	require.Empty(t, p.Obstacles)
	require.True(t, p.Possible())
	require.Len(t, p.Adoption.Snapshots, all+1)
}
