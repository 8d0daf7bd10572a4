package thinmeta_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// exclusive adds the pieces of Exclusive, of random sizes.
func exclusive(t testing.TB, r *rand.Rand, m *thinmeta.Metadata, id uint32, besides ...uint32) (total uint64) {
	t.Helper()
	return sumOfPieces(t, func(first uint64) (count, next uint64, more bool, err error) {
		return m.Exclusive(t.Context(), id, besides, first, 1+r.IntN(30))
	})
}

// TestExclusiveOfRandomPools compares Exclusive with the blocks that no other volume maps, as
// thin_dump shows them (TestDeltaOfRandomPools).
func TestExclusiveOfRandomPools(t *testing.T) {
	pools := 150
	if dmtest.Thorough() {
		pools = 3000
	}
	r := random(t)
	twins := 0
	for range pools {
		pool := randomCow(r, 3*(1+r.IntN(5)), 2+r.IntN(12), 1+r.IntN(300))
		m := open(t, pool.image(t))
		ids := slices.Sorted(maps.Keys(pool.volumes))
		users := map[uint64][]uint32{} // of blocks of the pool
		for _, id := range ids {
			for _, data := range pool.volumes[id].root.mapped() {
				users[data] = append(users[data], id)
			}
		}
		for _, id := range ids {
			var besides []uint32
			want, wantBeside := uint64(0), uint64(0)
			for _, other := range ids {
				if other != id && pool.volumes[other].root == pool.volumes[id].root && r.IntN(2) == 0 {
					besides = append(besides, other)
				}
			}
			twins += len(besides)
			for _, by := range users {
				if slices.Equal(by, []uint32{id}) {
					want++
				}
				others := slices.DeleteFunc(slices.Clone(by), func(user uint32) bool { return slices.Contains(besides, user) })
				if slices.Equal(others, []uint32{id}) {
					wantBeside++
				}
			}
			require.Equal(t, want, exclusive(t, r, m, id), "volume %d", id)
			// Ids that are not twins have no effect.
			require.Equal(t, wantBeside, exclusive(t, r, m, id, append(besides, id, 1<<20)...), "volume %d beside %v", id, besides)
		}
	}
	require.Greater(t, twins, 10)
}

// TestExclusiveReadsUnsharedPaths: the reads for a layer below a container grow with the
// container's changed paths.
func TestExclusiveReadsUnsharedPaths(t *testing.T) {
	r := random(t)
	pool := newCow(r, 252, 1<<20)
	pool.create(1)
	for virtual := range uint64(60_000) {
		pool.write(1, virtual)
	}
	pool.snapshot(2, 1)
	counted := &wholeBlocks{t: t, bytes: bytes.NewReader(pool.image(t))}
	m, err := thinmeta.Open(counted)
	require.NoError(t, err)
	counted.reads = 0
	require.Zero(t, exclusive(t, r, m, 1))
	require.LessOrEqual(t, counted.reads, 4+3)
	require.Equal(t, uint64(60_000), exclusive(t, r, m, 1, 2))

	pool.write(2, 5)
	pool.write(2, 59_999)
	counted.bytes = bytes.NewReader(pool.image(t))
	m, err = thinmeta.Open(counted)
	require.NoError(t, err)
	for _, id := range []uint32{1, 2} {
		counted.reads = 0
		count, _, more, err := m.Exclusive(t.Context(), id, nil, 0, 1000)
		require.NoError(t, err)
		require.False(t, more)
		require.Equal(t, uint64(2), count)
		// The volume, five nodes, the counts of the metadata, and those of two nodes' data.
		require.LessOrEqual(t, counted.reads, 4+5+4+2*126*4)
	}
	_, _, _, err = m.Exclusive(t.Context(), 3, nil, 0, 1)
	require.ErrorIs(t, err, thinmeta.ErrNoDevice)
}

// TestCountsOfLargeMetadata has counts in more than one bitmap.
func TestCountsOfLargeMetadata(t *testing.T) {
	r := random(t)
	pool := newCow(r, 6, 40_000)
	pool.least = 2*mapEntries + 1000
	pool.create(1)
	for virtual := range uint64(300) {
		pool.write(1, virtual)
	}
	pool.snapshot(2, 1)
	for virtual := range uint64(40) {
		pool.write(2, 7*virtual)
	}
	m := open(t, pool.image(t))
	require.Equal(t, uint64(40), exclusive(t, r, m, 1))
	require.Equal(t, uint64(40), exclusive(t, r, m, 2))
}

// TestExclusiveWithoutCounts: a metadata snapshot is one more user of the nodes.
func TestExclusiveWithoutCounts(t *testing.T) {
	pool := newCow(random(t), 6, 20_000)
	pool.create(1)
	pool.write(1, 3)
	image := pool.image(t)
	image.set(0, 56, 5)
	_, _, _, err := open(t, image).Exclusive(t.Context(), 1, nil, 0, 100)
	require.ErrorIs(t, err, thinmeta.ErrNoCounts)
	image.set(0, 56, 0)
	image.set(0, 64, 0)
	_, _, _, err = open(t, image).Exclusive(t.Context(), 1, nil, 0, 100)
	require.ErrorIs(t, err, thinmeta.ErrNoCounts)
}

// TestHostileCounts has wrong counts with correct checksums.
func TestHostileCounts(t *testing.T) {
	pool := newCow(random(t), 6, 20_000)
	pool.create(1)
	for virtual := range uint64(40) {
		pool.write(1, virtual)
	}
	// field returns the offset of a field of a space map's root, and its value.
	field := func(m image, root, n int) (offset int, value uint64) {
		return root + 8*n, binary.LittleEndian.Uint64(m.block(0)[root+8*n:])
	}
	for name, c := range map[string]struct {
		change func(image)
		want   string
	}{
		"few blocks of data": {func(m image) { m.set(0, 64, 1) }, "no reference count, which only the first 1 blocks have"},
		"few of metadata":    {func(m image) { m.set(0, 192, 1) }, "no reference count, which only the first 1 blocks have"},
		"no bitmaps of data": {func(m image) { m.set(0, 64+16, 1<<20) }, "block 1048576: metadata is damaged: it is past the end"},
		"no index":           {func(m image) { m.set(0, 192+16, 1<<20) }, "block 1048576: metadata is damaged: it is past the end"},
		"a node as index": {func(m image) {
			_, data := field(m, 64, 2)
			m.set(0, 192+16, uint32(data))
		}, "metadata is damaged: checksum"},
		"an index as a tree": {func(m image) {
			_, index := field(m, 192, 2)
			m.set(0, 64+16, uint32(index))
		}, "metadata is damaged: checksum"},
		"a tree without the bitmap": {func(m image) {
			_, data := field(m, 64, 2)
			m.header(int(data), 2, 0, 126, 16)
			m.seal(int(data))
		}, " is not in the tree"},
		"an index of zeros": {func(m image) {
			_, index := field(m, 192, 2)
			clear(m.block(int(index)))
			(&cowWriter{image: m}).sealAs(int(index), indexSalt)
		}, "block 0: metadata is damaged: checksum"},
		"free": {func(m image) {
			_, index := field(m, 192, 2)
			bitmap := binary.LittleEndian.Uint64(m.block(int(index))[16:])
			clear(m.block(int(bitmap)))
			(&cowWriter{image: m}).sealAs(int(bitmap), bitmapSalt)
		}, "it is used but counts as free"},
		"many, and no count": {func(m image) {
			_, index := field(m, 192, 2)
			bitmap := m.block(int(binary.LittleEndian.Uint64(m.block(int(index))[16:])))
			for i := range bitmap[16:] {
				bitmap[16+i] = 0xff
			}
			(&cowWriter{image: m}).sealAs(int(binary.LittleEndian.Uint64(m.block(int(index))[16:])), bitmapSalt)
		}, "it is not in the tree"},
	} {
		t.Run(name, func(t *testing.T) {
			m := pool.image(t)
			c.change(m)
			_, _, _, err := open(t, m).Exclusive(t.Context(), 1, nil, 0, 1000)
			require.ErrorIs(t, err, thinmeta.ErrDamaged)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// FuzzExclusive reads counts after random changes, with correct checksums.
func FuzzExclusive(f *testing.F) {
	pool := randomCow(rand.New(rand.NewPCG(1, 1)), 3, 8, 40)
	base := pool.image(f)
	ids := slices.Sorted(maps.Keys(pool.volumes))
	index := int(binary.LittleEndian.Uint64(base.block(0)[192+16:]))
	bitmaps := []int{int(binary.LittleEndian.Uint64(base.block(index)[16:]))}
	f.Add(uint8(0), edit(0, 64, 1), uint8(0))
	f.Add(uint8(1), append(edit(uint8(index), 16, 1), edit(uint8(bitmaps[0]), 16, 2)...), uint8(3))
	f.Fuzz(func(t *testing.T, volume uint8, edits []byte, blocks uint8) {
		m := image(bytes.Clone(base))
		for ; len(edits) >= editBytes; edits = edits[editBytes:] {
			number := int(edits[0]) % m.blocks()
			offset := 4 * (int(edits[1]) + int(edits[2])<<8) % 4096
			copy(m.block(number)[offset:], edits[3:editBytes])
			switch {
			case number == index:
				(&cowWriter{image: m}).sealAs(number, indexSalt)
			case slices.Contains(bitmaps, number):
				(&cowWriter{image: m}).sealAs(number, bitmapSalt)
			default:
				m.seal(number)
			}
		}
		r := &wholeBlocks{t: t, bytes: bytes.NewReader(m)}
		metadata, err := thinmeta.Open(r)
		if err != nil {
			requireKnown(t, err)
			return
		}
		id := ids[int(volume)%len(ids)]
		for first, pieces := uint64(0), 0; ; pieces++ {
			require.LessOrEqual(t, pieces, m.blocks()*254)
			r.reads = 0
			_, next, more, err := metadata.Exclusive(t.Context(), id, ids, first, 1+int(blocks))
			// The limit is checked after a node and a mapping: these read two trees and a bitmap
			// more.
			require.LessOrEqual(t, r.reads, int(blocks)+m.blocks()+100)
			if !errors.Is(err, thinmeta.ErrNoCounts) && !errors.Is(err, thinmeta.ErrNoDevice) {
				requireKnown(t, err)
			}
			if err != nil || !more {
				return
			}
			require.Greater(t, next, first)
			first = next
		}
	})
}
