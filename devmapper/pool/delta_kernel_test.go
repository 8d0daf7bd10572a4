package pool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/thintools"
)

const blockBytes = 64 << 10

// scribbler changes the volumes of a pool in the kernel at random.
type scribbler struct {
	*pool.Pool
	t   *testing.T
	r   *rand.Rand
	ids []thin.ID
}

func newScribbler(t *testing.T, p *pool.Pool) *scribbler {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &scribbler{Pool: p, t: t, r: rand.New(rand.NewPCG(seed, 0))}
}

// scribbledPool opens a new pool, and writes to its volume 1.
func scribbledPool(t *testing.T) (*devmapper.Control, *pool.Pool, *scribbler) {
	t.Helper()
	control, spec := newSpec(t)
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close(context.WithoutCancel(t.Context()))) })
	s := newScribbler(t, p)
	require.NoError(t, p.CreateThin(t.Context(), 1))
	s.change(1, 40)
	return control, p, s
}

// change writes to, or discards, runs of blocks of a volume, and commits.
func (s *scribbler) change(id thin.ID, runs int) {
	s.t.Helper()
	ctx := s.t.Context()
	vol, err := s.Activate(ctx, id, 4<<30, false)
	require.NoError(s.t, err)
	f, err := os.OpenFile(vol.Path, os.O_RDWR, 0)
	require.NoError(s.t, err)
	for range runs {
		// A few bytes of each block suffice: the test compares mappings, and the pool zeroes the
		// rest.
		first, length, stride := s.r.Int64N(20_000), 1+s.r.Int64N(300), 1+s.r.Int64N(4)
		if s.r.IntN(4) == 0 {
			require.NoError(s.t, blockdev.Discard(ctx, f, uint64(first)*blockBytes, uint64(length)*blockBytes, blockBytes, nil))
			continue
		}
		for i := range length / 10 {
			_, err := f.WriteAt([]byte{1}, (first+i*stride)*blockBytes)
			require.NoError(s.t, err)
		}
	}
	require.NoError(s.t, errors.Join(f.Sync(), f.Close(), s.Deactivate(ctx, id)))
}

// fill creates volumes, most of them snapshots of others.
func (s *scribbler) fill(volumes int) {
	s.t.Helper()
	ctx := s.t.Context()
	for id := thin.ID(1); int(id) <= volumes; id++ {
		if len(s.ids) == 0 || s.r.IntN(8) == 0 {
			require.NoError(s.t, s.CreateThin(ctx, id))
			s.ids = append(s.ids, id)
			s.change(id, 20)
			continue
		}
		require.NoError(s.t, s.CreateSnap(ctx, id, s.any()))
		s.ids = append(s.ids, id)
		for range s.r.IntN(3) {
			s.change(s.any(), 1+s.r.IntN(3))
		}
		if s.r.IntN(8) == 0 {
			i := s.r.IntN(len(s.ids))
			require.NoError(s.t, s.Delete(ctx, s.ids[i]))
			s.ids = slices.Delete(s.ids, i, i+1)
		}
	}
}

func (s *scribbler) any() thin.ID { return s.ids[s.r.IntN(len(s.ids))] }

// commits returns a function that makes the pool commit a snapshot of a volume, or its deletion.
func (s *scribbler) commits(origin thin.ID) func() error {
	exists := false
	return func() error {
		if exists = !exists; exists {
			return s.CreateSnap(s.t.Context(), 1000, origin)
		}
		return s.Delete(s.t.Context(), 1000)
	}
}

func (s *scribbler) delta(left, right thin.ID) (runs []thinmeta.Run) {
	s.t.Helper()
	require.NoError(s.t, s.Delta(s.t.Context(), left, right, func(r thinmeta.Run) error {
		runs = append(runs, r)
		return nil
	}))
	return runs
}

// TestDeltaIsThatOfThinDelta compares Delta with thin_delta on pools from the kernel.
func TestDeltaIsThatOfThinDelta(t *testing.T) {
	skipIfShort(t)
	pools := 2
	if dmtest.Thorough() {
		pools = 40
	}
	for range pools {
		t.Run("", func(t *testing.T) {
			control, spec := newSpec(t)
			p, err := spec.Open(t.Context(), control, false)
			require.NoError(t, err)
			s := newScribbler(t, p)
			s.fill(16)
			type pair struct{ left, right thin.ID }
			found := map[pair][]thinmeta.Run{}
			for range 20 {
				of := pair{s.any(), s.any()}
				found[of] = s.delta(of.left, of.right)
			}
			require.NoError(t, p.Close(t.Context()))
			for of, runs := range found {
				require.Equal(t, thintools.Delta(t, spec.MetadataFile, of.left, of.right), runs, "volumes %d and %d", of.left, of.right)
			}
		})
	}
}

// TestDeltaOfABusyPool: other volumes, which share metadata blocks with the compared ones, are
// created, written to and deleted meanwhile. A change of a compared volume is an error.
func TestDeltaOfABusyPool(t *testing.T) {
	skipIfShort(t)
	ctx := t.Context()
	_, p, s := scribbledPool(t)
	require.NoError(t, p.CreateSnap(ctx, 2, 1))
	s.change(2, 30)
	want := s.delta(1, 2)
	require.Greater(t, len(want), 20)

	next := thin.ID(3)
	busy := &busyContext{Context: ctx, change: s.commits(1)} // at each read of a node
	var got []thinmeta.Run
	require.NoError(t, p.Delta(busy, 1, 2, func(r thinmeta.Run) error {
		got = append(got, r)
		if len(got)%10 == 0 {
			require.NoError(t, p.CreateSnap(ctx, next, thin.ID(1+len(got)/10%2)))
			s.change(next, 3)
			if next > 4 {
				require.NoError(t, p.Delete(ctx, next-1))
			}
			next++
		}
		return nil
	}))
	require.NoError(t, busy.err)
	require.Equal(t, want, got)
	require.Greater(t, next, thin.ID(3))

	wanted := errors.New("enough")
	calls := 0
	err := p.Delta(ctx, 1, 2, func(thinmeta.Run) error { calls++; return wanted })
	require.ErrorIs(t, err, wanted)
	require.Equal(t, 1, calls)
	require.ErrorIs(t, p.Delta(ctx, 1, 999, func(thinmeta.Run) error { return nil }), thin.ErrNoDevice)

	written := false
	err = p.Delta(ctx, 1, 2, func(thinmeta.Run) error {
		if !written {
			written = true
			s.change(2, 20)
		}
		return nil
	})
	require.ErrorIs(t, err, pool.ErrWritten)
	deleted := false
	err = p.Delta(ctx, 1, 2, func(thinmeta.Run) error {
		if !deleted {
			deleted = true
			require.NoError(t, p.Delete(ctx, 2))
		}
		return nil
	})
	require.ErrorIs(t, err, thin.ErrNoDevice)
}
