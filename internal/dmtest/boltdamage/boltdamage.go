// Package boltdamage damages bbolt files for fuzz targets.
package boltdamage

import (
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// Small returns the bytes of a file without its free pages, and without the space that bbolt
// allocates ahead.
func Small(tb testing.TB, path string) []byte {
	tb.Helper()
	from, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(tb, err)
	small := filepath.Join(tb.TempDir(), "small.db")
	to, err := bolt.Open(small, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true})
	require.NoError(tb, err)
	require.NoError(tb, bolt.Compact(to, from, 0))
	var size int64
	require.NoError(tb, to.View(func(tx *bolt.Tx) error {
		size = tx.Size()
		return nil
	}))
	require.NoError(tb, from.Close())
	require.NoError(tb, to.Close())
	b, err := os.ReadFile(small)
	require.NoError(tb, err)
	return b[:size]
}

// Patch is a patch of one byte for Damage.
func Patch(at int, value byte) []byte { return []byte{byte(at >> 16), byte(at >> 8), byte(at), value} }

// Patches returns patches of one byte of each field in the header of each page, and of some bytes
// after it, with each of the values.
func Patches(whole []byte, values ...byte) [][]byte {
	var all [][]byte
	for page := 0; page < len(whole); page += os.Getpagesize() {
		for _, at := range []int{0, 1, 8, 9, 10, 11, 12, 15, 16, 18, 20, 24, 28, 32, 40} {
			for _, v := range values {
				all = append(all, Patch(page+at, v))
			}
		}
	}
	return all
}

// Damage returns a damaged copy of a file. Each four bytes of patch are a position and the byte to
// put there; a position after the end wraps around. If sums is set, Damage then corrects the
// checksums of the meta pages, the only pages that have one. If cut is not 0, it truncates the
// copy.
func Damage(whole, patch []byte, cut uint32, sums bool) []byte {
	b := slices.Clone(whole)
	for ; len(patch) >= 4; patch = patch[4:] {
		b[(int(patch[0])<<16|int(patch[1])<<8|int(patch[2]))%len(b)] = patch[3]
	}
	if sums {
		for _, meta := range [][]byte{b[16:80], b[os.Getpagesize()+16 : os.Getpagesize()+80]} {
			h := fnv.New64a()
			_, _ = h.Write(meta[:56])
			binary.NativeEndian.PutUint64(meta[56:], h.Sum64())
		}
	}
	if cut != 0 {
		b = b[:int(cut)%len(b)]
	}
	return b
}
