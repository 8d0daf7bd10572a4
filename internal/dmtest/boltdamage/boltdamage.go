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

// Small returns the bytes of a file without its free pages, and without the room that bbolt takes
// ahead.
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

// Patches has, for one byte of each field of each page's header and of what follows it, one patch
// with each of the values.
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

// Damage returns a damaged copy of a file. A patch is any number of positions (3 bytes, of which
// those behind the end begin again at the start) with the byte that is put there. With sums, the
// checksums of the meta pages are made right again: bbolt has none on other pages. Unless cut is 0,
// the file is cut.
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
