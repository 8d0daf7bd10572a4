package snapshotter_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// bench is a snapshotter on a fake pool; the store is real.
type bench struct {
	*snapshotter.Snapshotter
	pool   *fakepool.Pool
	store  *metadata.Store
	path   string
	config snapshotter.Config
	// mismatched is true if the store cannot match the pool.
	mismatched bool
}

func fakeConfig() snapshotter.Config {
	return snapshotter.Config{Filesystem: filesystem.Ext4, BaseBytes: 64 << 20, MinFreePercent: 10, Spares: 4, Discard: true}
}

// newBench returns a running snapshotter. Its store is checked at the end of the test.
func newBench(t testing.TB, config snapshotter.Config) *bench {
	t.Helper()
	b := &bench{pool: fakepool.New(4 << 30), path: filepath.Join(t.TempDir(), "metadata.db"), config: config}
	b.openStore(t)
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "fake", Mode: metadata.ModeLoop, Name: "fake", BlockSize: 64 << 10, Complete: true})
	}))
	require.NoError(t, b.start(t))
	t.Cleanup(func() {
		require.NoError(t, b.Close())
		if !b.mismatched {
			b.check(t)
		}
	})
	return b
}

func (b *bench) openStore(t testing.TB) {
	t.Helper()
	var err error
	b.store, err = metadata.Open(b.path, metadata.Options{LockTimeout: time.Second})
	require.NoError(t, err)
}

func (b *bench) start(t testing.TB) error {
	t.Helper()
	s, err := snapshotter.New(t.Context(), b.config, b.store, b.pool, b.pool)
	if err == nil {
		b.Snapshotter = s
	}
	return err
}

// restart closes the snapshotter and opens it again; crash simulates a crash of the machine in between.
func (b *bench) restart(t testing.TB, crash bool) {
	t.Helper()
	require.NoError(t, b.Close())
	if crash {
		b.pool.Crash()
	}
	b.openStore(t)
	require.NoError(t, b.start(t))
}

// check checks the store, and compares it with the pool: after the background work, both must have the same
// volumes.
func (b *bench) check(t testing.TB) {
	t.Helper()
	b.openStore(t)
	defer b.store.Close()
	problems, err := b.store.Check(context.Background())
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, b.store.View(context.Background(), func(tx *metadata.Tx) error {
		ids := b.pool.IDs()
		for id := range ids {
			_, owned := tx.Owner(uint32(id))
			leased := false
			leases, err := tx.Leases()
			require.NoError(t, err)
			for _, l := range leases {
				leased = leased || uint32(id) >= l.First && uint32(id) <= l.Last
			}
			require.True(t, owned || leased, "volume %d has no owner and is in no lease", id)
		}
		return tx.ForEach(func(s metadata.Snapshot) error {
			require.True(t, ids[thin.ID(s.VolumeID)], "snapshot %q has no volume", s.Key)
			return nil
		})
	}))
}

// owned returns the expected number of volumes: the base volumes, and one for each snapshot except Views.
func (b *bench) owned(t testing.TB) int {
	t.Helper()
	n := 0
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		counts, err := tx.CountByKind()
		require.NoError(t, err)
		bases, err := tx.Bases()
		n = counts.Active + counts.Committed + len(bases)
		return err
	}))
	return n
}

// requireNoLeftovers waits for the reaper, and requires that only spares have no record. It also waits for
// spares that are being created: a leftover would be taken for one of these.
func (b *bench) requireNoLeftovers(t testing.TB) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, b.Cleanup(t.Context()))
		ready := int(b.Spares().Present)
		require.Len(c, b.SpareVolumes(), ready)
		require.Len(c, b.pool.IDs(), b.owned(t)+ready)
	}, 10*time.Second, 10*time.Millisecond)
}

// prepare creates an active snapshot and returns its device.
func (b *bench) prepare(t testing.TB, key, parent string, opts ...snapshots.Opt) string {
	t.Helper()
	mounts, err := b.Prepare(t.Context(), key, parent, opts...)
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	return mounts[0].Source
}

func (b *bench) volume(t testing.TB, key string) thin.ID {
	t.Helper()
	var rec metadata.Snapshot
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	}))
	return thin.ID(rec.VolumeID)
}

// layer creates a committed snapshot with content.
func (b *bench) layer(t testing.TB, name, parent, content string) {
	t.Helper()
	require.NoError(t, b.pool.Write(b.prepare(t, name+"-active", parent), content))
	require.NoError(t, b.Commit(t.Context(), name, name+"-active"))
}

// content returns the content of a View of a snapshot.
func (b *bench) content(t testing.TB, name string) string {
	t.Helper()
	mounts, err := b.View(t.Context(), "view of "+name, name)
	require.NoError(t, err)
	content, err := b.pool.Read(mounts[0].Source)
	require.NoError(t, err)
	require.NoError(t, b.Remove(t.Context(), "view of "+name))
	return content
}
