package metadb

import (
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// thereAndBack reads any file. If Read and Rename accept it, Rename changes only lines with the
// names, Verify accepts the result, and renaming back makes the file equal.
func thereAndBack(t *testing.T, path string) {
	t.Helper()
	names, err := Read(t.Context(), path, old)
	if err != nil {
		require.Equal(t, Names{}, names)
		require.ErrorContains(t, err, path)
		return
	}
	before := dump(t, path)
	if err := Rename(t.Context(), path, old, fresh, nil); err != nil {
		require.Equal(t, before, dump(t, path))
		return
	}
	require.False(t, names.Empty())
	require.NoError(t, Verify(t.Context(), path, names, fresh, nil))
	after := dump(t, path)
	require.Len(t, after, len(before))
	without := func(lines []string, name string) []string {
		return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.Contains(line, name) })
	}
	require.Subset(t, after, without(before, old))
	require.Subset(t, before, without(after, fresh))
	require.NoError(t, Rename(t.Context(), path, fresh, old, nil))
	require.Equal(t, before, dump(t, path))
	again, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	require.Equal(t, names, again)
}

// FuzzDamage damages the file of a database that containerd made. A patch is any number of
// positions (3 bytes, of which those behind the end begin again at the start) with the byte that is
// put there, and the file may be cut. With sums, the checksums of the meta pages are made right
// again: bbolt has none on other pages.
func FuzzDamage(f *testing.F) {
	whole := small(f)
	patch := func(at int, value byte) []byte { return []byte{byte(at >> 16), byte(at >> 8), byte(at), value} }
	f.Add([]byte{}, uint32(0), false)
	f.Add(patch(0, 1), uint32(0), false)
	f.Add([]byte{}, uint32(4096), false)
	// One byte of each field of each page's header, and of what follows it.
	for page := range len(whole) / os.Getpagesize() {
		for _, at := range []int{0, 8, 10, 12, 16, 20, 24, 28} {
			f.Add(patch(page*os.Getpagesize()+at, 0xff), uint32(0), true)
		}
	}
	path := filepath.Join(f.TempDir(), "meta.db")
	f.Fuzz(func(t *testing.T, patch []byte, cut uint32, sums bool) {
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
		require.NoError(t, os.WriteFile(path, b, 0o600))
		thereAndBack(t, path)
	})
}

// small is the file of a database with little in it, without pages that are not in use.
func small(tb testing.TB) []byte {
	tb.Helper()
	c := start(tb, tb.TempDir(), map[string]*backend{old: newBackend()})
	ctx := c.lease(c.in("k8s.io"), "l", old)
	c.image(ctx, "i", map[string]string{labelRef + old: c.layers(ctx, old, "1")}, nil)
	c.prepare(ctx, old, "c", "1", nil)
	c.container(ctx, "c", old, "c", nil)
	c.stop()
	path := c.path
	from, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(tb, err)
	path = filepath.Join(tb.TempDir(), "small.db")
	to, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true})
	require.NoError(tb, err)
	require.NoError(tb, bolt.Compact(to, from, 0))
	var size int64
	require.NoError(tb, to.View(func(tx *bolt.Tx) error {
		size = tx.Size()
		return nil
	}))
	require.NoError(tb, from.Close())
	require.NoError(tb, to.Close())
	b, err := os.ReadFile(path)
	require.NoError(tb, err)
	return b[:size]
}

// The steps of a program that makes a database. A word of the list follows in the low bits.
const (
	enter    = 0x00 // a bucket, which is made if it is missing
	set      = 0x40 // a value; another byte has its word
	leave    = 0x80 // the bucket, and with its low bits more above it
	sequence = 0xc0 // of the bucket, the low bits
)

func words() []string {
	return []string{
		"v1", "version", "k8s.io", keyLabels, keyImages, keyContainers, keySnapshots, keyContent, keyBlob, keyLeases,
		keySandboxes, keySnapshotter, keySnapshotKey, keyName, keyParent, keyChildren, keyCreated, old, fresh,
		"devmapper2", labelRef + old, labelRef + old + "/x", labelRef + fresh, labelRef + "devmapperx/1",
		labelBackRef + old, labelCondition + old, labelCondition + "./" + old, labelCondition + fresh, labelDefault,
		"a", "b", "k8s.io/1/a", "\x06", "\x08", "", "\xff",
	}
}

// program returns the steps that set values, of which each is a path, a key and the value.
func program(values ...[]string) []byte {
	index := func(word string) byte { return byte(slices.Index(words(), word)) }
	var b []byte
	for _, v := range values {
		last := len(v) - 2
		for _, name := range v[:last] {
			b = append(b, enter|index(name))
		}
		b = append(b, set|index(v[last]), index(v[last+1]), sequence|3, leave|0x3f)
	}
	return b
}

// FuzzLayout makes a database of any layout, with bbolt.
func FuzzLayout(f *testing.F) {
	version := []string{"v1", "version", "\x08"}
	record := []string{"v1", "k8s.io", keySnapshots, old, "a", keyName, "k8s.io/1/a"}
	f.Add(program(version, record))
	outside := []string{"k8s.io", keySandboxes, "a", keyLabels, labelRef + old, "b"}
	f.Add(program([]string{"v1", "version", "\x06"}, record, outside))
	for _, v := range [][]string{
		{"v1", "k8s.io", keySnapshots, old, "a", keyLabels, labelRef + old + "/x", "b"},
		{"v1", "k8s.io", keySnapshots, fresh, "a", keyParent, "b"},
		{"v1", "k8s.io", keySnapshots, "devmapper2", old, keyLabels, labelCondition + "./" + old, "b"},
		{"v1", "k8s.io", keySnapshots, old, "b", keyChildren, "a", ""},
		{"v1", "k8s.io", keySnapshots, old, "b", keyCreated, "\xff"},
		{"v1", "k8s.io", keyLeases, "a", keySnapshots, old, "a", ""},
		{"v1", "k8s.io", keyContainers, "a", keySnapshotter, old},
		{"v1", "k8s.io", keyContainers, "a", keyLabels, labelRef + "devmapperx/1", "a"},
		{"v1", "k8s.io", keyImages, old, keyLabels, labelBackRef + old, "a"},
		{"v1", "k8s.io", keyContent, keyBlob, "a", keyLabels, labelCondition + old, "a"},
		{"v1", "k8s.io", keyLabels, labelDefault, old},
		{"v1", "a", "b", keySnapshots, old, "a"},
		{old, old, old, old, old},
	} {
		f.Add(program(version, record, v))
	}
	path := filepath.Join(f.TempDir(), "meta.db")
	f.Fuzz(func(t *testing.T, steps []byte) {
		construct(t, path, steps)
		thereAndBack(t, path)
	})
}

// construct makes a database with a program.
func construct(t *testing.T, path string, steps []byte) {
	t.Helper()
	require.NoError(t, os.RemoveAll(path))
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true})
	require.NoError(t, err)
	all := words()
	word := func(step byte) []byte { return []byte(all[int(step&0x3f)%len(all)]) }
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		at := []*bolt.Bucket{tx.Cursor().Bucket()}
		for ; len(steps) > 0; steps = steps[1:] {
			b := at[len(at)-1]
			switch step := steps[0]; step & 0xc0 {
			case enter:
				if within, err := b.CreateBucketIfNotExists(word(step)); err == nil && len(at) < 2*maxDepth {
					at = append(at, within)
				}
			case set:
				if steps = steps[1:]; len(steps) == 0 {
					return nil
				}
				if len(at) > 1 {
					_ = b.Put(word(step), word(steps[0]))
				}
			case leave:
				at = at[:max(1, len(at)-1-int(step&0x3f))]
			case sequence:
				_ = b.SetSequence(uint64(step & 0x3f))
			}
		}
		return nil
	}))
	require.NoError(t, db.Close())
}
