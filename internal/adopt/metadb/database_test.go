package metadb

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

const (
	old   = "devmapper"
	fresh = "thinsnap"
)

// odd are keys of snapshots that a client can choose.
var odd = []string{
	"a/b", "/", "devmapper", "snapshots", "labels", "with \"quotes\"", "new\nline", "ünïcode", "\x00", "\xff\xfe", ".",
	"containerd.io/gc.ref.snapshot.devmapper",
}

// everything makes containerd create a database with the old name in all places, and with similar
// names beside it. It returns the path, and the snapshotters of the database.
func everything(t testing.TB) (string, map[string]*backend) {
	t.Helper()
	dir := t.TempDir()
	c := start(t, dir, map[string]*backend{
		old: newBackend(), "devmapper2": newBackend(), "overlayfs": newBackend(), "devmapper.x": newBackend(),
	})
	ref := func(snapshotter, key string) map[string]string {
		return map[string]string{labelRef + snapshotter: key}
	}

	// A Kubernetes node: images that share layers, and containers.
	k8s := c.lease(c.in("k8s.io"), "pull", old)
	top := c.layers(k8s, old, "sha256:1", "sha256:2", "sha256:3")
	c.layers(k8s, "overlayfs", "sha256:1", "sha256:2")
	c.image(k8s, "docker.io/library/busybox:1", map[string]string{
		labelRef + old: top, labelRef + "overlayfs": "sha256:2", labelRef + old + "/other": "sha256:1",
		labelRef + "devmapper2": top, labelRef + "devmapperx/1": top, labelRef + "devmapper.x": top,
		labelRef + "Devmapper":                   top,
		"containerd.io/gc.ref.snapshotdevmapper": top, "devmapper": old, "containerd.io/gc.ref.content.devmapper": "none",
	}, map[string]string{labelBackRef + old: top, labelCondition + "." + old: "usedat<1h|" + top})
	c.prepare(k8s, old, "c1", top,
		map[string]string{"containerd.io/snapshot/x": "devmapper", labelRef + old: "sha256:1"})
	c.container(k8s, "c1", old, "c1", map[string]string{labelRef + old + "/a/b": "sha256:2", "devmapper": "devmapper"})
	c.container(k8s, "devmapper", "overlayfs", "devmapper", nil)
	c.container(k8s, "no-snapshot", old, "", nil)
	c.prepare(k8s, "overlayfs", "devmapper", "sha256:2", ref(old, "sha256:2"))
	_, err := c.Snapshotter(old).View(k8s, "view", top)
	require.NoError(t, err)
	c.sandbox(k8s, "pod", ref(old+"/pause", "view"))
	c.lease(c.in("k8s.io"), "keep", old, "view", "c1", "long gone")
	c.lease(c.in("k8s.io"), "devmapper", "overlayfs", "devmapper")
	c.namespaceLabel("k8s.io", labelDefault, old)
	c.namespaceLabel("k8s.io", "devmapper", old)

	// Odd keys, and another snapshotter whose name begins with the old one.
	odds := c.lease(c.in("odd"), "all", old)
	for _, key := range odd {
		c.prepare(odds, old, key, "", nil)
		c.prepare(odds, "devmapper2", key, "", map[string]string{labelBackRef + old + "/x": key})
	}
	c.namespaceLabel("odd", labelDefault, "devmapper2")

	// References without snapshots; an empty bucket with a sequence; other snapshotters only.
	c.image(c.in("references"), "expired", ref(old, "none"), ref("devmapper2", "none"))
	c.prepare(c.in("emptied"), old, "gone", "", nil)
	c.prepare(c.in("emptied"), old, "gone too", "", nil)
	require.NoError(t, c.Snapshotter(old).Remove(c.in("emptied"), "gone"))
	require.NoError(t, c.Snapshotter(old).Remove(c.in("emptied"), "gone too"))
	without := c.lease(c.in("without"), "all", "overlayfs")
	c.image(without, "devmapper", ref("overlayfs", c.layers(without, "overlayfs", "sha256:1")), nil)
	c.prepare(without, "devmapper.x", "x", "", nil)

	c.collect()
	c.stop()
	return c.path, c.backends
}

// dump returns every bucket with its sequence, and every key with its value.
func dump(t testing.TB, path string) []string {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer db.Close()
	var lines []string
	var walk func(b *bolt.Bucket, at string)
	walk = func(b *bolt.Bucket, at string) {
		lines = append(lines, fmt.Sprintf("%s sequence %d", at, b.Sequence()))
		require.NoError(t, b.ForEach(func(k, v []byte) error {
			if v == nil {
				walk(b.Bucket(k), at+strconv.Quote(string(k))+"/")
				return nil
			}
			lines = append(lines, fmt.Sprintf("%s%q = %q", at, k, v))
			return nil
		}))
	}
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		walk(tx.Cursor().Bucket(), "")
		return nil
	}))
	slices.Sort(lines)
	return lines
}

func edit(t testing.TB, path string, fn func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true})
	require.NoError(t, err)
	require.NoError(t, db.Update(fn))
	require.NoError(t, db.Close())
}

func bucket(tx *bolt.Tx, path ...string) *bolt.Bucket {
	b := tx.Cursor().Bucket()
	for _, name := range path {
		within, err := b.CreateBucketIfNotExists([]byte(name))
		if err != nil {
			panic(err)
		}
		b = within
	}
	return b
}

// copyFile copies a database to a directory of its own.
func copyFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	to := filepath.Join(t.TempDir(), "meta.db")
	require.NoError(t, os.WriteFile(to, b, 0o600))
	return to
}
