package diff

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

// TestSpansAreSets compares the arithmetic of spans with sets of blocks.
func TestSpansAreSets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		spans := func(count int) (spans []ext4.Span) {
			for range random.IntN(count) {
				spans = append(spans, ext4.Span{Start: random.Uint64N(60), Length: random.Uint64N(8)})
			}
			return spans
		}
		pending, others := spans(8), spans(12)
		in := func(spans []ext4.Span, block uint64) bool {
			return slices.ContainsFunc(spans, func(s ext4.Span) bool { return s.Start <= block && block < s.End() })
		}
		n := &inodes{pending: ext4.Merge(slices.Clone(pending))}
		var common []ext4.Span
		for _, s := range others {
			require.NoError(t, n.collect(t.Context(), &common, s))
		}
		left := without(n.pending, ext4.Merge(common))
		all := without(n.pending, ext4.Merge(slices.Clone(others)))
		require.Equal(t, all, left)
		for block := range uint64(80) {
			if in(left, block) != (in(pending, block) && !in(others, block)) {
				t.Fatalf("block %d of %v without %v: %v", block, pending, others, left)
			}
			if n.touches(ext4.Span{Start: block, Length: 1}) != in(pending, block) {
				t.Fatalf("block %d of %v", block, pending)
			}
		}
	}
}

// TestComparePaths: the order is that of a walk: the entries of a directory by name, each followed
// by its own entries.
func TestComparePaths(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a/x/1", "a/x\x01/1", "a-b", "a b/z", "a.d/y", "a\x01", "\xff\xfe", "a/x-", "aa", "0/a/b"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	var walked []string
	require.NoError(t, filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		walked = append(walked, strings.TrimPrefix(path, dir))
		return err
	}))
	sorted := slices.Clone(walked)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(sorted), func(i, j int) { sorted[i], sorted[j] = sorted[j], sorted[i] })
	slices.SortFunc(sorted, comparePaths)
	require.Equal(t, walked, sorted)
}

func TestEntries(t *testing.T) {
	dir := t.TempDir()
	var expected []entry
	for i := range 3000 {
		name := strings.Repeat("n", 1+i%200) + string(rune('a'+i%26)) + strings.Repeat("m", i/200)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "link")))
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range list {
		expected = append(expected, entry{name: e.Name(), dir: e.IsDir()})
	}
	opened, err := os.Open(dir)
	require.NoError(t, err)
	defer opened.Close()
	got, err := new(bounds).entries(fmt.Sprintf("/proc/self/fd/%d", opened.Fd()), "")
	require.NoError(t, err)
	for i := range got {
		require.NotZero(t, got[i].inode)
		got[i].inode = 0 // an overlay reports other inodes in listings
	}
	require.Equal(t, expected, got)
	_, err = new(bounds).entries(dir, "/link")
	require.ErrorIs(t, err, unix.ENOTDIR)
}

func TestEntriesOfAnUnknownKind(t *testing.T) {
	record := func(inode uint64, typ byte, length uint16) []byte {
		raw := binary.NativeEndian.AppendUint64(nil, inode)
		raw = binary.NativeEndian.AppendUint16(append(raw, make([]byte, 8)...), length)
		return append(append(raw, typ), "name\x00"...)
	}
	list, err := parseEntries(nil, record(7, unix.DT_DIR, 24))
	require.NoError(t, err)
	require.Equal(t, []entry{{name: "name", inode: 7, dir: true}}, list)
	for name, raw := range map[string][]byte{
		"no type": record(7, unix.DT_UNKNOWN, 24), "no inode": record(0, unix.DT_DIR, 24),
		"an inode that ext4 has not": record(1<<32, unix.DT_DIR, 24), "too short": record(7, unix.DT_DIR, 18),
		"too long": record(7, unix.DT_DIR, 25), "cut": record(7, unix.DT_DIR, 24)[:10],
	} {
		_, err := parseEntries(nil, raw)
		require.ErrorIs(t, err, errUnproved, name)
	}
}
