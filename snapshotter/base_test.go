package snapshotter_test

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// addBases adds base volumes as earlier versions did: one for each requested size.
func (b *bench) addBases(t *testing.T, sizes ...uint64) (ids []thin.ID) {
	t.Helper()
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		lease, err := tx.Lease(uint32(len(sizes)))
		require.NoError(t, err)
		b.pool.SetStatus(func(s *pool.Status) { s.TransactionID++ })
		ids = nil
		for i, bytes := range sizes {
			id := thin.ID(lease.First) + thin.ID(i)
			ids = append(ids, id)
			require.NoError(t, b.pool.CreateThin(t.Context(), id))
			vol, err := b.pool.Activate(t.Context(), id, bytes, false)
			require.NoError(t, err)
			require.NoError(t, b.pool.Make(t.Context(), vol.Path, filesystem.Ext4, nil))
			sb, err := b.pool.Identify(vol.Path)
			require.NoError(t, err)
			require.NoError(t, b.pool.Deactivate(t.Context(), id))
			require.NoError(t, tx.SetBase(metadata.BaseRecord{Filesystem: filesystem.Ext4, Size: bytes, VolumeID: uint32(id), UUID: sb.UUID}))
		}
		return nil
	}))
	return ids
}

// Each start keeps only the configured base volume. Layers made of the others remain.
func TestUnneededBasesAreRemoved(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer 0", "", "content 0")
	b.addBases(t, 17<<20, 18<<20, 19<<20)
	for n, bytes := range []uint64{64 << 20, 128 << 20, 32 << 20} {
		b.config.BaseBytes = bytes
		b.restart(t, false)
		name := fmt.Sprint("layer ", n+1)
		b.layer(t, name, "", "content of "+name)
		require.NoError(t, b.Cleanup(t.Context()))
		require.Equal(t, []uint64{bytes}, b.baseSizes(t))
		require.Equal(t, bytes, b.record(t, name).Size)
		b.requireNoLeftovers(t)
	}
	require.Equal(t, "content 0", b.content(t, "layer 0"))
	require.Equal(t, "content of layer 1", b.content(t, "layer 1"))
}

// A snapshot that is smaller than the base volume has its own file system, and adds no base volume.
func TestSmallerSizesMakeNoBases(t *testing.T) {
	b := newBench(t, fakeConfig())
	for n := range 20 {
		key := fmt.Sprint(n)
		b.prepare(t, key, "", labels(snapshotter.LabelSize, fmt.Sprint(17+n, "MiB")))
		require.EqualValues(t, (17+n)<<20, b.record(t, key).Size)
		require.NoError(t, b.Remove(t.Context(), key))
	}
	require.Equal(t, []uint64{b.config.BaseBytes}, b.baseSizes(t))
	b.requireNoLeftovers(t)
	require.Len(t, b.pool.IDs(), 1)
}

func TestStartActivatesOneBase(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.addBases(t, 17<<20, 18<<20, 19<<20)
	require.NoError(t, b.Close())
	b.pool.Crash()
	var mu sync.Mutex
	var active []thin.ID
	b.pool.SetFault(func(method string, id thin.ID) error {
		mu.Lock()
		defer mu.Unlock()
		if method == "Activate" {
			active = append(active, id)
		}
		if method == "Lookup" && id != 1 {
			return errors.New("no Lookup of this base volume") // prevents its deletion in the background, for now
		}
		return nil
	})
	b.openStore(t)
	require.NoError(t, b.start(t))
	mu.Lock()
	require.Equal(t, []thin.ID{1}, active)
	mu.Unlock()
	b.pool.SetFault(func(string, thin.ID) error { return nil })
	b.requireNoLeftovers(t)
}

// A lost base volume prevents the start only if no other base volume and no snapshot proves the pool.
// (TestPoolThatLostItsContentIsRefused has such a pool.)
func TestLostBase(t *testing.T) {
	for name, test := range map[string]struct {
		others []uint64
		lost   thin.ID // 0 for the first of the others
	}{
		"of another size":        {others: []uint64{17 << 20, 18 << 20}},
		"of the configured size": {others: []uint64{17 << 20, 18 << 20}, lost: 1},
		"the only one":           {lost: 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.layer(t, "layer", "", "content")
			if test.others != nil {
				test.lost = cmp.Or(test.lost, b.addBases(t, test.others...)[0])
			}
			require.NoError(t, b.Cleanup(t.Context()))
			require.NoError(t, b.Close())
			b.pool.Crash()
			require.NoError(t, b.pool.Delete(t.Context(), test.lost))
			b.openStore(t)
			require.NoError(t, b.start(t))
			b.prepare(t, "container", "")
			require.Equal(t, []uint64{b.config.BaseBytes}, b.baseSizes(t))
			b.requireNoLeftovers(t)
			require.Equal(t, "content", b.content(t, "layer"))
		})
	}
}

// A start that cannot replace the lost base volume keeps the records that prove the pool.
func TestLostBaseThatCannotBeReplaced(t *testing.T) {
	b := newExistingBench(t)
	require.NoError(t, b.start(t))
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Cleanup(t.Context()))
	lost := thin.ID(metadata.FirstInForeign)
	require.EqualValues(t, lost, b.base(t).VolumeID)
	require.NoError(t, b.Close())
	b.pool.Crash()
	require.NoError(t, b.pool.Delete(t.Context(), lost))
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "Make" {
			return errors.New("mkfs fails")
		}
		return nil
	})
	b.openStore(t)
	require.ErrorContains(t, b.start(t), "mkfs fails")
	require.EqualValues(t, lost, b.base(t).VolumeID)
	b.pool.SetFault(func(string, thin.ID) error { return nil })
	require.NoError(t, b.start(t))
	require.NotEqualValues(t, lost, b.base(t).VolumeID)
	require.Equal(t, "content", b.content(t, "layer"))
	require.NoError(t, b.Close())
}

// A View without a parent keeps its base volume.
func TestBaseWithAView(t *testing.T) {
	b := newBench(t, fakeConfig())
	_, err := b.View(t.Context(), "view", "")
	require.NoError(t, err)
	was := b.config.BaseBytes
	b.config.BaseBytes *= 2
	b.restart(t, true)
	require.Equal(t, []uint64{was, 2 * was}, b.baseSizes(t))
	_, err = b.Mounts(t.Context(), "view")
	require.NoError(t, err)
	require.NoError(t, b.Remove(t.Context(), "view"))
	b.restart(t, true)
	require.Equal(t, []uint64{2 * was}, b.baseSizes(t))
	b.requireNoLeftovers(t)
}

// New mkfs options apply to new snapshots without a parent.
func TestChangedMkfsOptions(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	before := b.base(t)
	b.restart(t, false)
	require.Equal(t, before, b.base(t))

	b.config.MkfsOptions = []string{"-I", "512"}
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "Make" {
			return errors.New("mkfs fails")
		}
		return nil
	})
	b.restart(t, false)
	require.Equal(t, before, b.base(t), "a start does not need it")
	b.prepare(t, "old options", "")

	b.pool.SetFault(func(string, thin.ID) error { return nil })
	b.restart(t, false)
	after := b.base(t)
	require.Equal(t, filesystem.MkfsOptions(filesystem.Ext4, b.config.MkfsOptions), after.MkfsOptions)
	require.NotEqual(t, before.VolumeID, after.VolumeID)
	b.prepare(t, "new options", "")
	require.Equal(t, after.VolumeID, b.record(t, "new options").Base)
	b.requireNoLeftovers(t)
	require.Equal(t, "content", b.content(t, "layer"))
}

// Neither a full pool nor a failing mkfs prevents a start with another base_size.
func TestStartWithoutTheNewBase(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	was := b.config.BaseBytes
	b.config.BaseBytes *= 2
	b.pool.SetFault(func(method string, _ thin.ID) error {
		if method == "CreateThin" {
			return errdefs.ErrResourceExhausted
		}
		return nil
	})
	b.restart(t, false)
	require.Equal(t, []uint64{was}, b.baseSizes(t))
	_, err := b.Prepare(t.Context(), "container", "")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	b.pool.SetFault(func(string, thin.ID) error { return nil })
	b.prepare(t, "container", "")
	require.Equal(t, 2*was, b.record(t, "container").Size)
}

func (b *bench) base(t *testing.T) (base metadata.BaseRecord) {
	t.Helper()
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		base, err = tx.Base(b.config.Filesystem, b.config.BaseBytes)
		return err
	}))
	return base
}
