package ext4_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

// TestSameRecord: records may differ only in the time of the last access, and then in the checksum.
func TestSameRecord(t *testing.T) {
	record := func(size, extra int) ext4.Record {
		r := make(ext4.Record, size)
		if size > 128 {
			r[0x80] = byte(extra)
		}
		return r
	}
	for _, size := range []int{128, 256, 512} {
		for _, extra := range []int{0, 4, 12, 16, 32} {
			if size == 128 && extra > 0 {
				continue
			}
			for at := range size {
				a, b := record(size, extra), record(size, extra)
				b[at]++
				access := at >= 0x8 && at < 0xC || extra >= 16 && at >= 0x8C && at < 0x90
				checksum := at == 0x7C || at == 0x7D || extra >= 4 && (at == 0x82 || at == 0x83)
				alone := a.Same(b)
				b[0x8] ^= 0xF0
				if alone != access || a.Same(b) != (access || checksum) {
					t.Errorf("byte %#x, record of %d, extra %d: same %t, with an access %t", at, size, extra, alone, a.Same(b))
				}
			}
			require.True(t, record(size, extra).Same(record(size, extra)))
		}
	}
	require.False(t, record(128, 0).Same(record(256, 0)))
}

// TestInodesIn finds each inode by the block of its record.
func TestInodesIn(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(features())) {
		f, err := open(t, image(t, imageBytes, "", features()[name]...))
		require.NoError(t, err)
		seen := uint64(0)
		for block := range f.Blocks() {
			first, count := f.InodesIn(block)
			seen += uint64(count)
			if count > 0 && (first == 0 || uint64(first)+uint64(count)-1 > f.Inodes()) {
				t.Fatalf("block %d has %d inodes from %d", block, count, first)
			}
		}
		require.Equal(t, f.Inodes(), seen, name)
	}
}

func TestMerge(t *testing.T) {
	require.Equal(t, []ext4.Span{{Start: 1, Length: 9}, {Start: 20, Length: 1}},
		ext4.Merge([]ext4.Span{{Start: 20, Length: 1}, {Start: 5, Length: 5}, {Start: 1, Length: 4}, {Start: 2, Length: 1}, {Start: 3}}))
	require.Empty(t, ext4.Merge(nil))
}
