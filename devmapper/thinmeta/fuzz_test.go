package thinmeta_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// editBytes is the size of an edit: a block, an offset in it in units of 4 bytes, and the 8 new
// bytes.
const editBytes = 1 + 2 + 8

// FuzzRead reads metadata after random changes. The input is only the changes: a fuzzer would spend
// its time on minimizing whole metadata. With seal the blocks have correct checksums, which reach
// the checks behind them.
func FuzzRead(f *testing.F) {
	bases := []image{smallImage(), restoredImage(f)}
	for base := range bases {
		f.Add(uint8(base), edit(0, 0, 0), false)
		f.Add(uint8(base), edit(0, 56, 3), true)         // a held root
		f.Add(uint8(base), edit(3, 4, 1), true)          // a leaf as an internal node
		f.Add(uint8(base), edit(3, 16, 252<<32|1), true) // its entries
		f.Add(uint8(base), append(edit(4, 4, 1), edit(4, 32+8*252, 3)...), true)
	}
	f.Fuzz(func(t *testing.T, base uint8, edits []byte, seal bool) {
		m := image(bytes.Clone(bases[int(base)%len(bases)]))
		for ; len(edits) >= editBytes; edits = edits[editBytes:] {
			number := int(edits[0]) % m.blocks()
			offset := 4 * (int(binary.LittleEndian.Uint16(edits[1:])) % (4096 / 4))
			copy(m.block(number)[offset:], edits[3:editBytes])
			if seal {
				m.seal(number)
			}
		}
		requireBounded(t, m)
	})
}

// smallImage has two volumes, one of them with an internal node.
func smallImage() image {
	m := newImage(8)
	m.node(3, 1, pair{5, 4}, pair{9, 5})
	m.node(4, 2, pair{6, 1 << 24}, pair{7, 2 << 24})
	m.node(5, 2, pair{9, 3<<24 | 1})
	m.details(1, 7, 8)
	m.node(2, 2, pair{7, 3}, pair{8, 6})
	m.node(6, 1, pair{5, 4})
	return m
}

// restoredImage is the first part of the output of thin_restore.
func restoredImage(t testing.TB) image {
	t.Helper()
	pool := newModel()
	pool.create(1)
	pool.write(1, 3)
	pool.snapshot(2, 1)
	pool.write(2, 4)
	m := load(t, restore(t, pool.contents().dump(pool.time), metadataBytes))[:12*4096]
	c, err := readAll(t, m)
	require.NoError(t, err)
	require.Equal(t, pool.contents(), c, "all metadata is in the first part")
	return m
}

func edit(number uint8, offset uint16, value uint64) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{number}, offset/4)
	return binary.LittleEndian.AppendUint64(b, value)
}

// requireBounded reads all metadata, and checks that there is no more than the blocks can hold.
func requireBounded(t *testing.T, image image) {
	t.Helper()
	r := &wholeBlocks{t: t, bytes: bytes.NewReader(image)}
	m, err := thinmeta.Open(r)
	if err != nil {
		requireKnown(t, err)
		return
	}
	s, err := thinmeta.OpenSnapshot(r, m.Superblock().HeldRoot)
	requireKnown(t, err)
	if err == nil {
		_, err = read(t, s)
		requireKnown(t, err)
	}
	c, err := read(t, m)
	requireKnown(t, err)
	// A block can be a leaf of one tree at only one place.
	require.LessOrEqual(t, len(c.devices), image.blocks()*126)
	for _, mappings := range c.mappings {
		require.LessOrEqual(t, len(mappings), image.blocks()*254)
	}
}

// requireKnown fails for an error that hostile metadata must not cause.
func requireKnown(t *testing.T, err error) {
	t.Helper()
	if err == nil || errors.Is(err, thinmeta.ErrDamaged) || errors.Is(err, thinmeta.ErrNoMetadata) ||
		errors.Is(err, errors.ErrUnsupported) {
		return
	}
	require.NoError(t, err)
}
