package thinmeta_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// TestDamage: after a change of any bit or byte, a reader reports damage or reads the original
// content.
func TestDamage(t *testing.T) {
	r := random(t)
	pool := randomPool(r, 130, 80)
	good := load(t, restore(t, pool.contents().dump(pool.time), metadataBytes))
	want, err := read(t, open(t, good))
	require.NoError(t, err)
	used := len(bytes.TrimRight(good, "\x00"))
	told := 0
	for range 150 {
		at, flip := r.IntN(used), byte(1)<<r.IntN(8)
		if r.IntN(2) == 0 {
			flip = byte(1 + r.IntN(255))
		}
		good[at] ^= flip
		got, err := readAll(t, good)
		good[at] ^= flip
		if err == nil {
			require.Equal(t, want, got, "byte %d with %#x", at, flip)
			continue
		}
		told++
		if at >= 32 && at < 40 {
			require.ErrorIs(t, err, thinmeta.ErrNoMetadata, "the magic number")
			continue
		}
		require.ErrorIs(t, err, thinmeta.ErrDamaged, "byte %d with %#x", at, flip)
		require.ErrorContains(t, err, "block ")
	}
	require.Positive(t, told)
}

// TestResealedDamage: with correct checksums a reader may read anything, or report damage.
func TestResealedDamage(t *testing.T) {
	r := random(t)
	pool := randomPool(r, 130, 80)
	good := load(t, restore(t, pool.contents().dump(pool.time), metadataBytes))
	used := len(bytes.TrimRight(good, "\x00"))/4096 + 1
	for range 150 {
		bad := image(bytes.Clone(good[:used*4096]))
		number := r.IntN(used)
		// Half of the changes are in the header, which matters most.
		at := r.IntN(32)
		if r.IntN(2) == 0 {
			at = r.IntN(4096)
		}
		bad.block(number)[at] ^= byte(1 + r.IntN(255))
		bad.seal(number)
		_, err := readAll(t, bad)
		requireKnown(t, err)
	}
}

func readAll(t testing.TB, image []byte) (contents, error) {
	t.Helper()
	m, err := thinmeta.Open(bytes.NewReader(image))
	if err != nil {
		return contents{}, err
	}
	return read(t, m)
}

// TestUnsealedSuperblock reads metadata whose superblock has a wrong checksum, and corrects that.
func TestUnsealedSuperblock(t *testing.T) {
	m := newImage(4)
	good := slices.Clone(m)
	m[100] ^= 0xff
	_, err := thinmeta.Open(bytes.NewReader(m))
	require.ErrorIs(t, err, thinmeta.ErrDamaged)
	metadata, err := thinmeta.OpenDamaged(bytes.NewReader(m))
	require.NoError(t, err)
	sealed, err := thinmeta.Open(bytes.NewReader(good))
	require.NoError(t, err)
	require.Equal(t, sealed.Superblock().TransactionID, metadata.Superblock().TransactionID)

	sum, err := thinmeta.SuperblockChecksum(bytes.NewReader(m))
	require.NoError(t, err)
	binary.LittleEndian.PutUint32(m, sum)
	_, err = thinmeta.Open(bytes.NewReader(m))
	require.NoError(t, err)
	sum, err = thinmeta.SuperblockChecksum(bytes.NewReader(good))
	require.NoError(t, err)
	require.Equal(t, binary.LittleEndian.Uint32(good), sum)

	clear(m[:4096])
	_, err = thinmeta.OpenDamaged(bytes.NewReader(m))
	require.ErrorIs(t, err, thinmeta.ErrNoMetadata)
}
