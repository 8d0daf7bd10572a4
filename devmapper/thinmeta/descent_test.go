package thinmeta_test

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// mappings returns the mappings of a volume, by its blocks.
func mappings(t testing.TB, m *thinmeta.Metadata, id uint32) map[uint64]thinmeta.Mapping {
	t.Helper()
	all := make(map[uint64]thinmeta.Mapping)
	for p, err := range m.Mappings(t.Context(), id) {
		require.NoError(t, err)
		all[p.Virtual] = p
	}
	return all
}

func descentOf(origin, volume map[uint64]thinmeta.Mapping) (d thinmeta.Descent) {
	for virtual, m := range volume {
		if o, mapped := origin[virtual]; mapped && o.Data == m.Data {
			d.Shared = true
			continue
		}
		if d.Own++; d.Own == 1 {
			d.Oldest = m.Time
		}
		d.Newest, d.Oldest = max(d.Newest, m.Time), min(d.Oldest, m.Time)
	}
	return d
}

// TestDescentOfRandomPools compares Descend, Lookup and End with all mappings.
func TestDescentOfRandomPools(t *testing.T) {
	pools := 100
	if dmtest.Thorough() {
		pools = 2000
	}
	r := random(t)
	for range pools {
		pool := randomCow(r, 3*(1+r.IntN(5)), 2+r.IntN(8), 1+r.IntN(200))
		m := open(t, pool.image(t))
		ids := slices.Sorted(maps.Keys(pool.volumes))
		all := map[uint32]map[uint64]thinmeta.Mapping{}
		for _, id := range ids {
			all[id] = mappings(t, m, id)
		}
		for _, id := range ids {
			tree := treeOf(t, m, id)
			end, err := tree.End(t.Context())
			require.NoError(t, err)
			want := uint64(0)
			for virtual := range all[id] {
				want = max(want, virtual+1)
			}
			require.Equal(t, want, end)
			for virtual := range want + 2 {
				got, mapped, err := tree.Lookup(t.Context(), virtual)
				require.NoError(t, err)
				want, has := all[id][virtual]
				require.Equal(t, want, got)
				require.Equal(t, has, mapped)
			}
			alone, err := thinmeta.Descend(t.Context(), thinmeta.Tree{}, tree)
			require.NoError(t, err)
			require.Equal(t, descentOf(nil, all[id]), alone)
			origin := ids[r.IntN(len(ids))]
			got, err := thinmeta.Descend(t.Context(), treeOf(t, m, origin), tree)
			require.NoError(t, err)
			expected := descentOf(all[origin], all[id])
			if len(all[id]) == 0 {
				got.Shared = false // whether the trees are the same is not known here
			}
			require.Equal(t, expected, got, "volumes %d and %d", origin, id)
		}
	}
}

// TestDescentOfACopy checks the properties of a copy of a volume that was not written to since.
func TestDescentOfACopy(t *testing.T) {
	pool := newCow(rand.New(rand.NewPCG(1, 1)), 6, 1<<16)
	pool.create(1)
	for virtual := range uint64(100) {
		pool.write(1, virtual)
	}
	pool.snapshot(2, 1)
	pool.write(2, 5)
	pool.discard(2, 6)
	pool.snapshot(3, 2)
	pool.write(3, 7)
	pool.create(4)
	pool.write(4, 5)
	m := open(t, pool.image(t))
	for _, c := range []struct {
		origin, volume uint32
		want           thinmeta.Descent
	}{
		{1, 2, thinmeta.Descent{Shared: true, Own: 1, Oldest: 1, Newest: 1}},
		{2, 3, thinmeta.Descent{Shared: true, Own: 1, Oldest: 2, Newest: 2}},
		{1, 3, thinmeta.Descent{Shared: true, Own: 2, Oldest: 1, Newest: 2}},
		{1, 4, thinmeta.Descent{Own: 1, Oldest: 2, Newest: 2}},
		{4, 3, thinmeta.Descent{Own: 99, Newest: 2}},
	} {
		got, err := thinmeta.Descend(t.Context(), treeOf(t, m, c.origin), treeOf(t, m, c.volume))
		require.NoError(t, err)
		require.Equal(t, c.want, got, "volume %d of %d", c.volume, c.origin)
	}
	empty, _, err := thinmeta.Tree{}.Lookup(t.Context(), 3)
	require.NoError(t, err)
	require.Zero(t, empty)
	end, err := thinmeta.Tree{}.End(t.Context())
	require.NoError(t, err)
	require.Zero(t, end)
}

// TestDamagedLookups damages each metadata block in turn.
func TestDamagedLookups(t *testing.T) {
	pool := newCow(rand.New(rand.NewPCG(2, 2)), 6, 1<<16)
	pool.create(1)
	for virtual := range uint64(60) {
		pool.write(1, virtual)
	}
	image := pool.image(t)
	failed := 0
	for block := 1; block < image.blocks(); block++ {
		damaged := slices.Clone(image)
		damaged[block*4096+100] ^= 0xff
		m, err := thinmeta.Open(bytes.NewReader(damaged))
		require.NoError(t, err)
		tree, err := m.Tree(t.Context(), 1)
		if err != nil {
			continue
		}
		_, _, lookup := tree.Lookup(t.Context(), 59)
		_, end := tree.End(t.Context())
		_, descend := thinmeta.Descend(t.Context(), thinmeta.Tree{}, tree)
		if end != nil {
			failed++
			require.ErrorIs(t, end, thinmeta.ErrDamaged)
			require.ErrorIs(t, lookup, thinmeta.ErrDamaged)
			require.ErrorIs(t, descend, thinmeta.ErrDamaged)
		}
	}
	require.Positive(t, failed)
}
