package metadb

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/dmtest/boltdamage"
)

// thereAndBack reads any file. If Read and Rename accept it, Rename must change only lines with the
// names, Verify must accept the result, and Restore must make the file equal.
func thereAndBack(t *testing.T, path string, leave LeaveOut) {
	t.Helper()
	names, err := Read(t.Context(), path, old)
	if err != nil {
		require.Equal(t, Names{}, names)
		require.ErrorContains(t, err, path)
		return
	}
	before := dump(t, path)
	found := strings.Contains(strings.Join(before, "\n"), fresh)
	if err := Rename(t.Context(), path, old, fresh, leave); err != nil {
		require.Equal(t, before, dump(t, path))
		return
	}
	require.False(t, names.Empty())
	require.NoError(t, Verify(t.Context(), path, names, fresh, leave))
	if done, err := Renamed(t.Context(), path, old, fresh); true {
		require.NoError(t, err)
		after, err := Read(t.Context(), path, fresh)
		require.NoError(t, err)
		require.True(t, done || after.Vacant())
	}
	after := dump(t, path)
	without := func(lines []string, name string) []string {
		return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.Contains(line, name) })
	}
	require.Subset(t, after, without(before, old))
	for _, label := range []string{containerSuffix, `"labels"/ sequence 0`} { // made by snapshots that are left out
		after = without(after, label)
	}
	require.Subset(t, before, without(after, fresh))
	require.NoError(t, Restore(t.Context(), path, old, fresh))
	if found { // an empty bucket, or a default
		return
	}
	require.Equal(t, withoutOddities(before), withoutOddities(dump(t, path)))
	again, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	require.Equal(t, names.Digest, again.Digest)
}

// withoutOddities removes the items that containerd does not make and Restore does not keep: empty
// buckets of labels, and values of a snapshot's children.
func withoutOddities(lines []string) []string {
	text := strings.Join(lines, "\n")
	var kept []string
	for _, line := range lines {
		if record, labels := strings.CutSuffix(line, `/"labels"/ sequence 0`); labels {
			if (strings.Contains(record, `"snapshots"`) || strings.Contains(record, `"containers"`)) && !strings.Contains(text, record+`/"labels"/"`) {
				continue
			}
		}
		if child, _, ok := strings.Cut(line, `" = `); ok && strings.Contains(child, `"children"/`) {
			line = child
		}
		kept = append(kept, line)
	}
	return kept
}

// FuzzDamage damages, with boltdamage.Damage, the file of a database that containerd made.
func FuzzDamage(f *testing.F) {
	whole := small(f)
	f.Add([]byte{}, uint32(0), false, false)
	f.Add([]byte{}, uint32(0), false, true)
	f.Add(boltdamage.Patch(0, 1), uint32(0), false, false)
	f.Add([]byte{}, uint32(4096), false, false)
	for _, patch := range boltdamage.Patches(whole, 0xff) {
		f.Add(patch, uint32(0), true, true)
	}
	path := filepath.Join(f.TempDir(), "meta.db")
	f.Fuzz(func(t *testing.T, patch []byte, cut uint32, sums, leave bool) {
		require.NoError(t, os.WriteFile(path, boltdamage.Damage(whole, patch, cut, sums), 0o600))
		thereAndBack(t, path, LeaveOut{"k8s.io": {"c": leave}})
	})
}

// small returns the file of a small database without free pages.
func small(tb testing.TB) []byte {
	tb.Helper()
	c := start(tb, tb.TempDir(), map[string]*backend{old: newBackend()})
	ctx := c.lease(c.in("k8s.io"), "l", old)
	c.image(ctx, "i", map[string]string{labelRef + old: c.layers(ctx, old, "1")}, nil)
	c.prepare(ctx, old, "c", "1", nil)
	c.container(ctx, "c", old, "c", nil)
	c.stop()
	return boltdamage.Small(tb, c.path)
}

// The steps of a program that makes a database. Their low bits select a word of the list.
const (
	enter    = 0x00 // a bucket, which is created if it is missing
	set      = 0x40 // a value, whose word is in another byte
	leave    = 0x80 // the bucket, and as many buckets above it as the low bits say
	sequence = 0xc0 // set the bucket's sequence to the low bits
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

// program returns the steps that set values. Each value is a path, a key and the value.
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

// FuzzLayout makes a database of any layout with bbolt, and leaves out any of three snapshots.
func FuzzLayout(f *testing.F) {
	version := []string{"v1", "version", "\x08"}
	record := []string{"v1", "k8s.io", keySnapshots, old, "a", keyName, "k8s.io/1/a"}
	f.Add(program(version, record), uint8(0))
	outside := []string{"k8s.io", keySandboxes, "a", keyLabels, labelRef + old, "b"}
	f.Add(program([]string{"v1", "version", "\x06"}, record, outside), uint8(1))
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
		f.Add(program(version, record, v), uint8(0))
		f.Add(program(version, record, v), uint8(1))
	}
	child := []string{"v1", "k8s.io", keySnapshots, old, "b", keyParent, "a"}
	known := []string{"v1", "k8s.io", keySnapshots, old, "a", keyChildren, "b", ""}
	for out := range uint8(4) {
		f.Add(program(version, record, child), out)
		f.Add(program(version, record, child, known), out)
		f.Add(program(version, record, child, known, []string{"v1", "k8s.io", keySnapshots, fresh, ""}), out)
	}
	path := filepath.Join(f.TempDir(), "meta.db")
	f.Fuzz(func(t *testing.T, steps []byte, out uint8) {
		construct(t, path, steps)
		left := map[string]bool{"a": out&1 != 0, "b": out&2 != 0, old: out&4 != 0}
		thereAndBack(t, path, LeaveOut{"k8s.io": left, "a": left})
	})
}

// construct makes a database from the steps of a program.
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
