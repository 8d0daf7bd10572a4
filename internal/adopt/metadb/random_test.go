package metadb

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// random makes databases, and chooses snapshots to leave out.
type random struct {
	*rand.Rand
	tx    *bolt.Tx
	leave LeaveOut
}

// pick returns one of the words, or "gone".
func (r *random) pick(from []string) string {
	if i := r.IntN(len(from) + 1); i < len(from) {
		return from[i]
	}
	return "gone"
}

// label adds labels of all kinds to an object.
func (r *random) label(keys []string, path ...string) {
	for range r.IntN(3) {
		sn := []string{old, old, old, "overlayfs", "devmapper2"}[r.IntN(5)]
		kind := []string{labelRef, labelRef, labelBackRef, labelCondition + "./", "containerd.io/other."}[r.IntN(5)]
		value := r.pick(keys)
		if strings.HasPrefix(kind, labelCondition) {
			value = "usedat<1h|" + value
		}
		suffix := []string{"", "", "/x", "/y"}[r.IntN(4)]
		put(bucket(r.tx, append(path, keyLabels)...), kind+sn+suffix, value)
	}
}

// namespace makes a namespace with trees of snapshots, and leaves out some with their descendants.
func (r *random) namespace(ns string) {
	sn := []string{"v1", ns, keySnapshots, old}
	var all []string
	out := make(map[string]bool)
	number := uint64(0)
	for i := range r.IntN(12) {
		key := fmt.Sprintf("%c", 'a'+i)
		number += 1 + r.Uint64N(3)
		record := append(slices.Clip(sn), key)
		put(bucket(r.tx, record...), keyName, fmt.Sprintf("%s/%d/%s", ns, number, key))
		if parent := r.pick(all); parent != "gone" {
			put(bucket(r.tx, record...), keyParent, parent)
			put(bucket(r.tx, append(slices.Clip(sn), parent, keyChildren)...), key, "")
			out[key] = out[parent]
		}
		out[key] = out[key] || r.IntN(5) == 0
		all = append(all, key)
		r.label(all, record...)
	}
	if len(all) > 0 || r.IntN(2) == 0 {
		if err := bucket(r.tx, sn...).SetSequence(number + r.Uint64N(9)); err != nil {
			panic(err)
		}
	}
	if r.IntN(3) == 0 { // the collector may leave these
		put(bucket(r.tx, append(sn, "parent", keyChildren)...), "gone", "")
		put(bucket(r.tx, append(sn, "parent")...), keyName, ns+"/1/parent")
	}
	for i := range r.IntN(3) {
		id := fmt.Sprintf("container%d", i)
		put(bucket(r.tx, "v1", ns, keyContainers, id), keySnapshotter, []string{old, "overlayfs"}[r.IntN(2)])
		put(bucket(r.tx, "v1", ns, keyContainers, id), keySnapshotKey, r.pick(all))
		r.label(all, "v1", ns, keyContainers, id)
		lease := []string{"v1", ns, keyLeases, fmt.Sprintf("lease%d", i), keySnapshots, []string{old, "overlayfs"}[r.IntN(2)]}
		bucket(r.tx, lease...)
		for range r.IntN(4) {
			put(bucket(r.tx, lease...), r.pick(all), "")
		}
		for j, kind := range []string{keyImages, keySandboxes, keyContent + "/" + keyBlob} {
			r.label(all, append(append([]string{"v1", ns}, strings.Split(kind, "/")...), fmt.Sprintf("sha256:%d%d", i, j))...)
		}
	}
	if r.IntN(2) == 0 {
		put(bucket(r.tx, "v1", ns, keyLabels), labelDefault, []string{old, "overlayfs"}[r.IntN(2)])
	}
	r.leave[ns] = out
}

// made returns the path of a database, and the snapshots to leave out.
func (r *random) made(t *testing.T) (string, LeaveOut) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meta.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	r.leave = make(LeaveOut)
	edit(t, path, func(tx *bolt.Tx) error {
		r.tx = tx
		put(bucket(tx, "v1"), keyVersion, "\x08")
		for _, ns := range []string{"a", "b", "k8s.io"}[:1+r.IntN(3)] {
			r.namespace(ns)
		}
		// Rename needs at least one entry.
		put(bucket(tx, "v1", "a", keyLeases, "root", keySnapshots, old), "a", "")
		return nil
	})
	return path, r.leave
}

// TestRandomDatabases: Verify accepts the result of Rename, and containerd's collector keeps and
// removes the same snapshots after it. Restore makes the database equal to the original.
func TestRandomDatabases(t *testing.T) {
	seeds := uint64(40)
	if dmtest.Thorough() {
		seeds = 1000
	}
	for seed := range seeds {
		r := &random{Rand: rand.New(rand.NewPCG(seed, 0))}
		path, leave := r.made(t)
		before := dump(t, path)
		names, err := Read(t.Context(), path, old)
		require.NoError(t, err)
		done, err := Renamed(t.Context(), path, old, fresh)
		require.NoError(t, err)
		require.False(t, done)
		collected := copyFile(t, path)

		require.NoError(t, Rename(t.Context(), path, old, fresh, leave), seed)
		require.NoError(t, Verify(t.Context(), path, names, fresh, leave), seed)
		done, err = Renamed(t.Context(), path, old, fresh)
		require.NoError(t, err)
		moved, err := Read(t.Context(), path, fresh)
		require.NoError(t, err)
		require.Equal(t, !moved.Vacant(), done, seed)
		renamed := copyFile(t, path)
		require.NoError(t, Restore(t.Context(), path, old, fresh))
		require.Equal(t, before, dump(t, path), seed)

		require.Equal(t, survivors(t, collected, old, old), survivors(t, renamed, old, fresh), seed)
		require.NoError(t, Restore(t.Context(), renamed, old, fresh), seed)
		require.Equal(t, survivors(t, collected, old, old), survivors(t, renamed, old, old), seed)
	}
}

// survivors returns the snapshots, under one of two names of a snapshotter, that containerd's
// collector keeps.
func survivors(t *testing.T, path string, either, or string) []string {
	t.Helper()
	c := start(t, filepath.Dir(path), map[string]*backend{or: newBackend()})
	_, err := c.GarbageCollect(t.Context())
	require.NoError(t, err)
	c.stop()
	var all []string
	for _, sn := range []string{either, or} {
		names, err := Read(t.Context(), path, sn)
		require.NoError(t, err)
		for _, ns := range names.Namespaces {
			for _, s := range ns.Snapshots {
				all = append(all, ns.Name+" "+s.Backend+" of "+s.Parent)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
