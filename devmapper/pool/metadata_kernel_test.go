package pool_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// busyContext makes the pool commit a change at each call of Err.
type busyContext struct {
	context.Context
	change func() error
	err    error
}

func (c *busyContext) Err() error {
	c.err = errors.Join(c.err, c.change())
	return c.Context.Err()
}

// TestVolumesOfABusyPool reads a pool that commits during each try, as it does for writers that
// sync.
func TestVolumesOfABusyPool(t *testing.T) {
	control, spec := newSpec(t)
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(t.Context())) }()
	for _, id := range []thin.ID{5, 7, 100} {
		require.NoError(t, p.CreateThin(t.Context(), id))
	}
	ctx := &busyContext{Context: t.Context(), change: func() error {
		return errors.Join(p.CreateSnap(t.Context(), 1000, 5), p.Delete(t.Context(), 1000))
	}}
	volumes, err := p.Volumes(ctx, 1, 99)
	require.NoError(t, err)
	require.NoError(t, ctx.err)
	require.Equal(t, map[thin.ID]bool{5: true, 7: true}, volumes)
	writes, err := p.Writes(ctx, 7)
	require.NoError(t, err)
	require.NoError(t, ctx.err)
	require.Equal(t, thinmeta.Writes{Undated: true}, writes)
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Zero(t, status.HeldRoot, "the metadata snapshot is released")
}

// TestTimeOfABusyPool: the time is read without a metadata snapshot, which a kill would leave in a
// foreign pool. In this test another program has the snapshot.
func TestTimeOfABusyPool(t *testing.T) {
	control, spec := newSpec(t)
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(t.Context())) }()
	require.NoError(t, p.CreateThin(t.Context(), 5))
	require.NoError(t, p.ReadMetadata(t.Context(), func(*thinmeta.Metadata) error {
		ctx := &busyContext{Context: t.Context(), change: func() error {
			return errors.Join(p.CreateSnap(t.Context(), 1000, 5), p.Delete(t.Context(), 1000))
		}}
		before, err := p.Time(ctx)
		require.NoError(t, err)
		require.NoError(t, ctx.err)
		after, err := p.Time(ctx)
		require.NoError(t, err)
		require.Equal(t, before+1, after)
		return nil
	}))
}

// TestMetadataSnapshotOfAFullPool: a metadata snapshot keeps blocks that the pool has replaced. A
// long read stops before these fill the metadata.
func TestMetadataSnapshotOfAFullPool(t *testing.T) {
	skipIfShort(t)
	_, _, p := newSmallPool(t)
	ctx := t.Context()
	next := thin.ID(1)
	err := p.ReadMetadata(ctx, func(metadata *thinmeta.Metadata) error {
		for ; ; next++ {
			if err := p.CreateThin(ctx, next); err != nil {
				return err
			}
			for range 16 {
				for _, err := range metadata.Devices(ctx) {
					if err != nil {
						return err
					}
				}
			}
		}
	})
	require.ErrorIs(t, err, pool.ErrMetadataShort)
	require.ErrorIs(t, p.ReadMetadata(ctx, func(*thinmeta.Metadata) error { return nil }), pool.ErrMetadataShort)
	status, err := p.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, thin.ModeReadWrite, status.Mode)
	require.Zero(t, status.HeldRoot)
	require.NoError(t, p.CreateThin(ctx, next+1))
}

// TestWrites: the kernel's metadata shows the writes to a volume, and since when.
func TestWrites(t *testing.T) {
	control, spec := newSpec(t)
	ctx := t.Context()
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	const block = 64 << 10
	write := func(id thin.ID, blocks ...int64) {
		t.Helper()
		vol, err := p.Activate(ctx, id, volumeBytes, false)
		require.NoError(t, err)
		f, err := os.OpenFile(vol.Path, os.O_WRONLY, 0)
		require.NoError(t, err)
		for _, b := range blocks {
			_, err := f.WriteAt(make([]byte, block), b*block)
			require.NoError(t, err)
		}
		require.NoError(t, errors.Join(f.Sync(), f.Close(), p.Deactivate(ctx, id)))
	}
	snapshotOf := func(id thin.ID) {
		t.Helper()
		require.NoError(t, errors.Join(p.CreateSnap(ctx, 1000, id), p.Delete(ctx, 1000)))
	}
	is := func(id thin.ID, want thinmeta.Writes) {
		t.Helper()
		got, err := p.Writes(ctx, id)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err = p.Writes(ctx, 1)
	require.ErrorIs(t, err, thin.ErrNoDevice)
	require.NoError(t, p.CreateThin(ctx, 1))
	is(1, thinmeta.Writes{Undated: true})
	write(1, 0, 1, 9)
	is(1, thinmeta.Writes{SinceCreation: true, SinceSnapshot: true, Undated: true, Mapped: 3, End: 10})

	require.NoError(t, p.CreateSnap(ctx, 2, 1))
	is(1, thinmeta.Writes{SinceCreation: true, Snapshotted: true, Undated: true, Mapped: 3, End: 10})
	is(2, thinmeta.Writes{Mapped: 3, End: 10})
	twins := func(id thin.ID) []thin.ID {
		t.Helper()
		found, err := p.Twins(ctx, id)
		require.NoError(t, err)
		return found
	}
	require.Equal(t, []thin.ID{1}, twins(2))
	require.NoError(t, p.CreateThin(ctx, 50))
	require.NoError(t, p.CreateThin(ctx, 51))
	require.Empty(t, twins(50), "the other empty volume is no twin")
	require.NoError(t, p.CreateSnap(ctx, 52, 1))
	require.Equal(t, []thin.ID{1, 2}, twins(52))
	write(52, 1)
	require.Empty(t, twins(52))
	for id := range thin.ID(3) {
		require.NoError(t, p.Delete(ctx, 50+id))
	}
	_, err = p.Twins(ctx, 50)
	require.ErrorIs(t, err, thin.ErrNoDevice)
	require.NoError(t, p.Delete(ctx, 1))
	is(2, thinmeta.Writes{Mapped: 3, End: 10})
	write(2, 1) // replaces a block of its origin, which is deleted
	is(2, thinmeta.Writes{SinceCreation: true, SinceSnapshot: true, Mapped: 3, End: 10})
	snapshotOf(2)
	is(2, thinmeta.Writes{SinceCreation: true, Snapshotted: true, Mapped: 3, End: 10})
	write(2, 1) // to its own block, which no other volume maps any longer
	is(2, thinmeta.Writes{SinceCreation: true, SinceSnapshot: true, Snapshotted: true, Mapped: 3, End: 10})
	snapshotOf(2)
	write(2, 20) // to a new block
	is(2, thinmeta.Writes{SinceCreation: true, SinceSnapshot: true, Snapshotted: true, Mapped: 4, End: 21})

	// Uncommitted writes count.
	require.NoError(t, p.CreateSnap(ctx, 3, 2))
	vol, err := p.Activate(ctx, 3, volumeBytes, false)
	require.NoError(t, err)
	f, err := os.OpenFile(vol.Path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, block), 30*block)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	is(3, thinmeta.Writes{SinceCreation: true, SinceSnapshot: true, Mapped: 5, End: 31})
	require.NoError(t, f.Close())
	for _, id := range []thin.ID{2, 3} {
		require.NoError(t, errors.Join(p.Deactivate(ctx, id), p.Delete(ctx, id)))
	}
	_, err = p.Writes(ctx, 3)
	require.ErrorIs(t, err, thin.ErrNoDevice)
	require.NotErrorIs(t, err, pool.ErrMetadataSnapshot)
}
