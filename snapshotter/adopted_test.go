package snapshotter_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	adoptedLow thin.ID = iota + 1
	adoptedHigh
	adoptedBox
	adoptedKept
	adoptedEmpty
	notAdopted
)

const adoptedBytes = 32 << 20

// newAdoptedBench is a bench on another snapshotter's pool. It has layers "low" and "high", two children of
// "high" (the container "box" and the View "look"), two leftovers, one of them unmapped, and a foreign
// volume. The snapshotter is not started.
func newAdoptedBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{pool: fakepool.New(4 << 30), path: filepath.Join(t.TempDir(), "metadata.db"), config: fakeConfig()}
	b.config.Spares = 0
	uuid := b.makeAdopted(t)
	adopted := func(key, parent string, kind snapshots.Kind, id thin.ID) metadata.Snapshot {
		s := metadata.Snapshot{
			Key: key, Parent: parent, Kind: kind, VolumeID: uint32(id), Size: adoptedBytes, Filesystem: filesystem.Ext4,
			Created: time.Unix(1, 0), Updated: time.Unix(2, 0),
		}
		if kind == snapshots.KindCommitted {
			s.Usage = metadata.Usage{Bytes: 64 << 10, Inodes: 11}
		}
		return s
	}
	b.openStore(t)
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.Adopt(metadata.Adoption{
			Pool: metadata.PoolRecord{
				ID: "fake", Mode: metadata.ModeExisting, Name: "fake", BlockSize: 64 << 10, Complete: true,
				Existing: metadata.ExistingPool{MappedDevice: "pool", Adopted: []metadata.AdoptedVolume{
					{VolumeID: uint32(adoptedLow), Filesystem: filesystem.Ext4, UUID: uuid},
					{VolumeID: uint32(adoptedHigh), Filesystem: filesystem.Ext4, UUID: uuid},
				}},
			},
			Client: metadata.ClientRecord{Number: 1, Proxy: "thinsnap", Installation: "i"},
			Snapshots: []metadata.Snapshot{
				adopted("low", "", snapshots.KindCommitted, adoptedLow),
				adopted("high", "low", snapshots.KindCommitted, adoptedHigh),
				adopted("box", "high", snapshots.KindActive, adoptedBox),
				adopted("look", "high", snapshots.KindView, adoptedHigh),
			},
			Kept: []metadata.KeptRecord{
				{VolumeID: uint32(adoptedKept), Mapped: 64 << 10, Size: adoptedBytes, Found: time.Unix(3, 0)},
				{VolumeID: uint32(adoptedEmpty), Found: time.Unix(3, 0)},
			},
		})
	}))
	return b
}

// makeAdopted creates the other snapshotter's volumes, and returns the UUID of their file system.
func (b *bench) makeAdopted(t *testing.T) (uuid string) {
	t.Helper()
	ctx := t.Context()
	write := func(id thin.ID, content string) {
		vol, err := b.pool.Activate(ctx, id, adoptedBytes, false)
		require.NoError(t, err)
		if uuid == "" {
			require.NoError(t, b.pool.Make(ctx, vol.Path, filesystem.Ext4, nil))
			sb, err := b.pool.Identify(vol.Path)
			require.NoError(t, err)
			uuid = sb.UUID
		}
		require.NoError(t, b.pool.Write(vol.Path, content))
		require.NoError(t, b.pool.Flush(ctx, id))
		require.NoError(t, b.pool.Deactivate(ctx, id))
	}
	require.NoError(t, b.pool.CreateThin(ctx, adoptedLow))
	write(adoptedLow, "low")
	require.NoError(t, b.pool.CreateSnap(ctx, adoptedHigh, adoptedLow))
	write(adoptedHigh, "high")
	require.NoError(t, b.pool.CreateSnap(ctx, adoptedBox, adoptedHigh))
	write(adoptedBox, "box")
	require.NoError(t, b.pool.CreateSnap(ctx, adoptedKept, adoptedHigh))
	require.NoError(t, b.pool.CreateThin(ctx, adoptedEmpty))
	require.NoError(t, b.pool.CreateThin(ctx, notAdopted))
	return uuid
}

func TestAdoptedSnapshots(t *testing.T) {
	b := newAdoptedBench(t)
	ctx := t.Context()
	require.NoError(t, b.start(t))
	require.Equal(t, "high", b.content(t, "high"))
	mounts, err := b.Mounts(ctx, "box")
	require.NoError(t, err)
	content, err := b.pool.Read(mounts[0].Source)
	require.NoError(t, err)
	require.Equal(t, "box", content)
	_, err = b.Mounts(ctx, "look")
	require.NoError(t, err)

	b.restart(t, true)
	b.layer(t, "top", "high", "top")
	require.GreaterOrEqual(t, b.volume(t, "top"), thin.ID(metadata.FirstInForeign))
	b.prepare(t, "new", "low")
	require.NoError(t, b.Commit(ctx, "boxed", "box"))
	require.Equal(t, adoptedBox, b.volume(t, "boxed"))
	require.Equal(t, "box", b.content(t, "boxed"))
	usage, err := b.Usage(ctx, "high")
	require.NoError(t, err)
	require.Positive(t, usage.Size)
	low, err := b.Usage(ctx, "low")
	require.NoError(t, err)
	require.EqualValues(t, 11, low.Inodes)
	before := b.pool.Calls()["Usage"]
	_, err = b.Usage(ctx, "high")
	require.NoError(t, err)
	require.Equal(t, before, b.pool.Calls()["Usage"], "a committed snapshot is read once")

	require.NoError(t, b.Close())
	b.pool.Crash()
	b.openStore(t)
	require.NoError(t, b.start(t))
	for _, key := range []string{"look", "boxed", "top", "new", "high", "low"} {
		require.NoError(t, b.Remove(ctx, key))
	}
	require.NoError(t, b.Cleanup(ctx))
	ids := b.pool.IDs()
	require.Len(t, ids, 4, "the base volume, the leftovers, and the other user's")
	require.Contains(t, ids, adoptedKept)
	require.Contains(t, ids, adoptedEmpty)
	require.Contains(t, ids, notAdopted)
	b.restart(t, true)
	require.NoError(t, b.RemoveLeftover(ctx, adoptedKept))
	require.NoError(t, b.RemoveLeftover(ctx, adoptedEmpty))
	require.NoError(t, b.Cleanup(ctx))
	require.NotContains(t, b.pool.IDs(), adoptedKept)
	require.NotContains(t, b.pool.IDs(), adoptedEmpty)
	require.Contains(t, b.pool.IDs(), notAdopted)
	require.NoError(t, b.Close())
	b.openStore(t)
	problems, err := b.store.Check(ctx)
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, b.store.Close())
}

// TestAdoptedPoolIsProved: each start verifies adopted volumes, even with a base volume, and does not
// change another pool.
func TestAdoptedPoolIsProved(t *testing.T) {
	for name, c := range map[string]struct {
		started bool // before the test
		change  func(t *testing.T, b *bench)
		want    string
	}{
		"another pool":                       {change: anotherPool, want: "has a file system with UUID"},
		"another pool, after a start":        {started: true, change: anotherPool, want: "has a file system with UUID"},
		"one volume of another":              {started: true, change: anotherVolume(adoptedHigh), want: "has a file system with UUID"},
		"an empty pool":                      {change: func(_ *testing.T, b *bench) { b.pool.Replace() }, want: "is not in the pool"},
		"an empty pool, after a start":       {started: true, change: func(_ *testing.T, b *bench) { b.pool.Replace() }, want: "is not in the pool"},
		"one volume lost":                    {change: loses(adoptedLow)},
		"one volume lost, after a start":     {started: true, change: loses(adoptedHigh)},
		"both lost, with a base volume":      {started: true, change: loses(adoptedHigh, adoptedLow)},
		"both lost":                          {change: loses(adoptedHigh, adoptedLow), want: "is not in the pool"},
		"the base volume lost":               {started: true, change: loses(metadata.FirstInForeign)},
		"the base volume lost, and one more": {started: true, change: loses(metadata.FirstInForeign, adoptedLow)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newAdoptedBench(t)
			if c.started {
				require.NoError(t, b.start(t))
				require.NoError(t, b.Close())
				b.pool.Crash()
				b.openStore(t)
			}
			c.change(t, b)
			ids := b.pool.IDs()
			err := b.start(t)
			if c.want == "" {
				require.NoError(t, err)
				require.NoError(t, b.Close())
				return
			}
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, c.want)
			require.Equal(t, ids, b.pool.IDs())
			active, err := b.pool.Active(t.Context())
			require.NoError(t, err)
			require.Empty(t, active)
			require.NoError(t, b.store.Close())
		})
	}
}

func anotherPool(t *testing.T, b *bench) {
	b.pool.Replace()
	b.makeAdopted(t)
}

func anotherVolume(id thin.ID) func(t *testing.T, b *bench) {
	return func(t *testing.T, b *bench) {
		require.NoError(t, b.pool.Delete(t.Context(), id))
		require.NoError(t, b.pool.CreateThin(t.Context(), id))
		vol, err := b.pool.Activate(t.Context(), id, adoptedBytes, false)
		require.NoError(t, err)
		require.NoError(t, b.pool.Make(t.Context(), vol.Path, filesystem.Ext4, nil))
		require.NoError(t, b.pool.Flush(t.Context(), id))
		require.NoError(t, b.pool.Deactivate(t.Context(), id))
	}
}

func loses(ids ...thin.ID) func(t *testing.T, b *bench) {
	return func(t *testing.T, b *bench) {
		for _, id := range ids {
			require.NoError(t, b.pool.Delete(t.Context(), id))
		}
	}
}

// TestAdoptedVolumesProveLeases: adopted volumes prove the pool, so leftovers of a crash in the first start
// are deleted before there is a base volume.
func TestAdoptedVolumesProveLeases(t *testing.T) {
	b := newAdoptedBench(t)
	const left = metadata.FirstInForeign + 3
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		_, err := tx.Lease(64)
		return err
	}))
	require.NoError(t, b.pool.CreateSnap(t.Context(), left, adoptedHigh))
	require.NoError(t, b.start(t))
	require.NoError(t, b.Cleanup(t.Context()))
	require.NotContains(t, b.pool.IDs(), thin.ID(left))
	require.NoError(t, b.Close())
}
