package metadb

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func space(t *testing.T, n Names, name string) Namespace {
	t.Helper()
	i := slices.IndexFunc(n.Namespaces, func(ns Namespace) bool { return ns.Name == name })
	require.GreaterOrEqual(t, i, 0, "no namespace %q", name)
	return n.Namespaces[i]
}

func TestRead(t *testing.T) {
	path, _ := everything(t)
	n, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	require.Equal(t, old, n.Snapshotter)
	require.EqualValues(t, 4, n.Version)
	require.Empty(t, n.Problems)
	require.False(t, n.Empty())
	require.Len(t, n.Namespaces, 5, "the namespace \"without\" has only other snapshotters")

	k8s := space(t, n, "k8s.io")
	require.True(t, k8s.Bucket)
	require.True(t, k8s.Default)
	require.EqualValues(t, 8, k8s.Sequence, "a Prepare takes a number, and so does a Commit")
	require.Equal(t, []Container{{"c1", "c1"}, {"no-snapshot", ""}}, k8s.Containers)
	require.Equal(t, []Lease{
		{"keep", []string{"c1", "long gone", "view"}},
		{"pull", []string{"c1", "sha256:1", "sha256:2", "sha256:3", "view"}},
	}, k8s.Leases)
	require.Len(t, k8s.Snapshots, 5)
	c1, two := k8s.Snapshots[0], k8s.Snapshots[2]
	require.WithinDuration(t, time.Now(), c1.Created, time.Hour)
	require.Equal(t, time.UTC, c1.Created.Location())
	c1.Created, c1.Updated, two.Created, two.Updated = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	require.Equal(t, Snapshot{
		Key: "c1", Backend: "k8s.io/7/c1", Parent: "sha256:3",
		Labels: map[string]string{"containerd.io/snapshot/x": "devmapper", labelRef + old: "sha256:1"},
	}, c1)
	// A Commit does not keep the unpacker's label of the Prepare.
	require.Equal(t, Snapshot{
		Key: "sha256:2", Backend: "k8s.io/4/sha256:2", Parent: "sha256:1", Children: []string{"sha256:3"},
	}, two)
	objects := make([]string, 0, len(k8s.Labels))
	for _, l := range k8s.Labels {
		objects = append(objects, strings.Split(l.Object, ":")[0]+" "+strings.TrimPrefix(l.Key, "containerd.io/gc."))
	}
	require.Equal(t, []string{
		"containers/c1 ref.snapshot.devmapper/a/b",
		"content/blob/sha256 ref.snapshot.devmapper",
		"content/blob/sha256 ref.snapshot.devmapper/other",
		"images/docker.io/library/busybox bref.snapshot.devmapper",
		"images/docker.io/library/busybox cond.snapshot.devmapper",
		"sandboxes/pod ref.snapshot.devmapper/pause",
		"snapshots/devmapper/c1 ref.snapshot.devmapper",
		"snapshots/overlayfs/devmapper ref.snapshot.devmapper",
	}, objects)

	emptied, references := space(t, n, "emptied"), space(t, n, "references")
	require.Equal(t, Namespace{Name: "emptied", Bucket: true, Sequence: 2}, emptied)
	require.False(t, references.Bucket)
	require.Len(t, references.Labels, 1)
	o := space(t, n, "odd")
	require.False(t, o.Default)
	require.Len(t, o.Labels, len(odd))
	require.Len(t, o.Snapshots, len(odd))
	for _, s := range o.Snapshots {
		require.Contains(t, odd, s.Key)
		require.True(t, strings.HasSuffix(s.Backend, "/"+s.Key))
	}

	none, err := Read(t.Context(), path, fresh)
	require.NoError(t, err)
	require.True(t, none.Empty())
	require.NotEqual(t, none.Digest, n.Digest)
}

// TestVersionThree: containerd 1.7 has sandboxes outside v1. 2.0 moves them after the renaming.
func TestVersionThree(t *testing.T) {
	path, backends := everything(t)
	edit(t, path, func(tx *bolt.Tx) error {
		put(bucket(tx, "v1"), keyVersion, string(binary.AppendVarint(nil, 3)))
		from := bucket(tx, "v1", "k8s.io", keySandboxes)
		if err := copyBucket(context.Background(), bucket(tx, "k8s.io", keySandboxes), from); err != nil {
			return err
		}
		return bucket(tx, "v1", "k8s.io").DeleteBucket([]byte(keySandboxes))
	})
	before := dump(t, path)
	names, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	require.EqualValues(t, 3, names.Version)
	require.Equal(t, "sandboxes/pod", space(t, names, "k8s.io").Labels[5].Object)
	without := copyFile(t, path)
	leave := LeaveOut{"k8s.io": {"view": true}}
	require.NoError(t, Rename(t.Context(), without, old, fresh, leave))
	require.NoError(t, Verify(t.Context(), without, names, fresh, leave))
	left, err := Read(t.Context(), without, old)
	require.NoError(t, err)
	require.Equal(t, []Label{{"sandboxes/pod", labelRef + old + "/pause", "view"}}, left.Namespaces[0].Labels)
	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	require.NoError(t, Verify(t.Context(), path, names, fresh, nil))
	copied := copyFile(t, path)
	require.NoError(t, Rename(t.Context(), copied, fresh, old, nil))
	require.Equal(t, before, dump(t, copied))

	backends[fresh] = backends[old]
	c := start(t, filepath.Dir(path), backends)
	pod, err := metadata.NewSandboxStore(c.DB).Get(c.in("k8s.io"), "pod")
	require.NoError(t, err)
	require.Equal(t, map[string]string{labelRef + fresh + "/pause": "view"}, pod.Labels)
	c.stop()
	names, err = Read(t.Context(), path, fresh)
	require.NoError(t, err)
	require.EqualValues(t, 4, names.Version)
}

// TestUnknownLayouts: Read and Rename refuse unknown data, and name it.
func TestUnknownLayouts(t *testing.T) {
	good, _ := everything(t)
	version := func(n int64) func(tx *bolt.Tx) {
		return func(tx *bolt.Tx) { put(bucket(tx, "v1"), keyVersion, string(binary.AppendVarint(nil, n))) }
	}
	// The names in a path are separated by slashes.
	making := func(path string) func(tx *bolt.Tx) {
		return func(tx *bolt.Tx) { bucket(tx, strings.Split(path, "/")...) }
	}
	setting := func(path string) func(tx *bolt.Tx) {
		dir, key := filepath.Split(path)
		return func(tx *bolt.Tx) { put(bucket(tx, strings.Split(dir[:len(dir)-1], "/")...), key, "y") }
	}
	damaged, unknown, unfit := errdefs.ErrDataLoss, errdefs.ErrNotImplemented, errdefs.ErrFailedPrecondition
	for name, c := range map[string]struct {
		edit  func(tx *bolt.Tx)
		class error
		text  string
	}{
		"an older version": {version(2), unfit, "has version 2: start containerd 1.3 or newer once"},
		"a newer version":  {version(5), unknown, "has version 5, and 4 is the last known one"},
		"no version": {
			func(tx *bolt.Tx) { _ = bucket(tx, "v1").Delete([]byte(keyVersion)) }, damaged, "not a number",
		},
		"a long version": {func(tx *bolt.Tx) { put(bucket(tx, "v1"), keyVersion, "\x08\x00") }, damaged, "not a number"},
		"no schema":      {func(tx *bolt.Tx) { _ = tx.DeleteBucket([]byte("v1")) }, unfit, "not used it yet"},
		"another database": {
			func(tx *bolt.Tx) { _ = tx.DeleteBucket([]byte("v1")); bucket(tx, "v2", "k8s.io") }, unfit,
			"not a meta.db of containerd",
		},
		"another schema":      {making("v2/k8s.io/x"), unknown, "v2/k8s.io is not known"},
		"a kind of object":    {making("v1/k8s.io/volumes"), unknown, "v1/k8s.io/volumes"},
		"a value in a space":  {setting("v1/k8s.io/x"), unknown, "v1/k8s.io/x"},
		"a value in v1":       {setting("v1/x"), damaged, "v1/x is of the wrong kind"},
		"an object":           {setting("v1/a/images/x"), damaged, "v1/a/images/x"},
		"a snapshotter":       {setting("v1/a/snapshots/x"), damaged, "v1/a/snapshots/x"},
		"snapshots":           {setting("v1/a/snapshots"), damaged, "v1/a/snapshots"},
		"labels of an object": {setting("v1/a/images/x/labels"), damaged, "x/labels"},
		"a label":             {making("v1/a/images/x/labels/y"), damaged, "x/labels/y"},
		"a space's label":     {making("v1/a/labels/y"), damaged, "v1/a/labels/y"},
		"a snapshotter field": {making("v1/a/containers/x/snapshotter"), damaged, "x/snapshotter"},
		"a backend name":      {making("v1/a/snapshots/s/x/name"), damaged, "x/name"},
		"a parent":            {making("v1/a/snapshots/s/x/parent"), damaged, "x/parent"},
		"a lease":             {setting("v1/a/leases/l/snapshots"), damaged, "l/snapshots"},
		"a leased snapshot":   {setting("v1/a/leases/l/snapshots/x"), damaged, "snapshots/x"},
		"depth":               {making("v1/a/images/1/2/3/4/5/6/7/8/9/a/b/c/d/e"), damaged, "deeper"},
	} {
		t.Run(name, func(t *testing.T) {
			path := copyFile(t, good)
			edit(t, path, func(tx *bolt.Tx) error { c.edit(tx); return nil })
			before, err := os.ReadFile(path)
			require.NoError(t, err)
			_, err = Read(t.Context(), path, old)
			for _, err := range []error{
				err, Rename(t.Context(), path, old, fresh, nil), Rename(t.Context(), path, "none", fresh, nil),
			} {
				require.ErrorIs(t, err, c.class)
				require.ErrorContains(t, err, c.text)
				require.ErrorContains(t, err, path)
			}
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
}

// TestProblems: contradictions between records are Problems, not errors.
func TestProblems(t *testing.T) {
	path, _ := everything(t)
	edit(t, path, func(tx *bolt.Tx) error {
		record := func(key string) *bolt.Bucket { return bucket(tx, "v1", "a", keySnapshots, old, key) }
		put(record("nameless"), keyCreated, "")
		put(record("orphan"), keyName, "a/1/orphan")
		put(record("orphan"), keyParent, "gone")
		put(record("parent"), keyName, "b/9/from another namespace")
		put(bucket(tx, "v1", "a", keySnapshots, old, "parent", keyChildren), "gone", "")
		put(bucket(tx, "v1", "a", keySnapshots, old, "parent", keyChildren), "orphan", "")
		put(record("unknown child"), keyName, "a/3/x")
		put(record("unknown child"), keyParent, "parent")
		put(record("unknown child"), keyUpdated, "never")
		put(bucket(tx, "v1", "a", keySnapshots, old), "value", "x")
		put(bucket(tx, "v1", "a", keyContainers, "c"), keySnapshotter, old)
		put(bucket(tx, "v1", "a", keyContainers, "c"), keySnapshotKey, "gone")
		return bucket(tx, "v1", "a", keySnapshots, old).SetSequence(2)
	})
	n, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	texts := make([]string, 0, len(n.Problems))
	for _, p := range n.Problems {
		texts = append(texts, p.String())
	}
	require.Equal(t, []string{
		`snapshot "nameless" in namespace "a": its field createdat is not a time: Time.UnmarshalBinary: no data`,
		`snapshot "unknown child" in namespace "a": its field updatedat is not a time: Time.UnmarshalBinary: unsupported version`,
		`snapshot "value" in namespace "a": it is not a record, so containerd ignores it`,
		`snapshot "nameless" in namespace "a": it has no name in the snapshotter`,
		`snapshot "orphan" in namespace "a": its parent "gone" does not exist`,
		`snapshot "parent" in namespace "a": its child "gone" does not exist, so the snapshot cannot be removed`,
		`snapshot "parent" in namespace "a": its child "orphan" has the parent "gone"`,
		`snapshot "unknown child" in namespace "a": its number 3 is higher than the last one used, 2: it may be used again`,
		`snapshot "unknown child" in namespace "a": its parent "parent" does not list it as a child, and could be removed`,
		`container "c" in namespace "a": its snapshot "gone" does not exist`,
	}, texts)
	before := dump(t, path)
	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	require.NoError(t, Verify(t.Context(), path, n, fresh, nil))
	require.NoError(t, Rename(t.Context(), path, fresh, old, nil))
	require.Equal(t, before, dump(t, path))
}

// TestInUse: Read and Rename fail while containerd has the database open.
func TestInUse(t *testing.T) {
	t.Parallel() // it waits
	path, backends := everything(t)
	c := start(t, filepath.Dir(path), backends)
	_, err := Read(t.Context(), path, old)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "another process has it open: stop containerd")
	c.stop()
	before := dump(t, path)
	reader, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	require.ErrorIs(t, Rename(t.Context(), path, old, fresh, nil), errdefs.ErrFailedPrecondition)
	_, err = Read(t.Context(), path, old)
	require.NoError(t, err, "a second reader")
	require.NoError(t, reader.Close())
	require.Equal(t, before, dump(t, path))
}

// TestNotADatabase: no call waits, panics, creates a file or changes it.
func TestNotADatabase(t *testing.T) {
	good, _ := everything(t)
	b, err := os.ReadFile(good)
	require.NoError(t, err)
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, b, 0o600))
		return path
	}
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	require.NoError(t, os.Symlink(good, link))
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for path, class := range map[string]error{
		filepath.Join(dir, "missing"):             errdefs.ErrNotFound,
		filepath.Join(good, "x"):                  errdefs.ErrNotFound,
		link:                                      errdefs.ErrFailedPrecondition,
		file("empty", nil):                        errdefs.ErrDataLoss,
		file("text", []byte("version = 3\n")):     errdefs.ErrDataLoss,
		file("zeros", make([]byte, len(b))):       errdefs.ErrDataLoss,
		file("half", b[:len(b)/2]):                errdefs.ErrDataLoss,
		file("two pages", b[:2*os.Getpagesize()]): errdefs.ErrDataLoss,
		pipe: errdefs.ErrDataLoss,
	} {
		before, _ := os.Stat(path)
		_, err := Read(t.Context(), path, old)
		require.ErrorIs(t, err, class, path)
		require.ErrorContains(t, err, path)
		require.ErrorIs(t, Rename(t.Context(), path, old, fresh, nil), class, path)
		require.ErrorIs(t, Restore(t.Context(), path, old, fresh), class, path)
		renamed, err := Renamed(t.Context(), path, old, fresh)
		require.Error(t, err, path)
		require.False(t, renamed)
		if after, err := os.Stat(path); before != nil {
			require.NoError(t, err)
			require.Equal(t, before.ModTime(), after.ModTime())
		}
	}
	_, err = Read(t.Context(), dir, old)
	require.Error(t, err)
	require.NoFileExists(t, filepath.Join(dir, "missing"))
}

// TestCancelled: a call with a cancelled context changes nothing.
func TestCancelled(t *testing.T) {
	path, _ := everything(t)
	before := dump(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Read(ctx, path, old)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, Rename(ctx, path, old, fresh, nil), context.Canceled)
	require.Equal(t, before, dump(t, path))
}

// TestManySnapshots logs the duration of each step, with 10,000 snapshots in a thorough run.
func TestManySnapshots(t *testing.T) {
	many := 1_000
	if dmtest.Thorough() {
		many = 10_000
	}
	backends := map[string]*backend{old: newBackend()}
	c := start(t, t.TempDir(), backends)
	ctx := c.in("k8s.io")
	require.NoError(t, c.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		parent := ""
		for i := range many {
			key := fmt.Sprintf("sha256:%064d", i)
			if i%10 == 0 {
				parent = ""
			}
			_, err := c.Snapshotter(old).Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{"i": key}))
			if err != nil {
				return err
			}
			name := "committed-" + key
			labels := snapshots.WithLabels(map[string]string{labelRef + old: parent})
			if err := c.Snapshotter(old).Commit(ctx, name, key, labels); err != nil {
				return err
			}
			parent = name
		}
		return nil
	}))
	c.stop()
	began := time.Now()
	step := func(name string) {
		t.Logf("%s: %v", name, time.Since(began))
		began = time.Now()
	}
	before := dump(t, c.path)
	step("dump")
	names, err := Read(t.Context(), c.path, old)
	require.NoError(t, err)
	require.Empty(t, names.Problems)
	require.Len(t, names.Namespaces[0].Snapshots, many)
	step("Read")
	leave := LeaveOut{"k8s.io": {}}
	for i := range many {
		leave["k8s.io"][fmt.Sprintf("committed-sha256:%064d", i)] = i%10 >= 8
	}
	for _, leave := range []LeaveOut{nil, leave} {
		require.NoError(t, Rename(t.Context(), c.path, old, fresh, leave))
		step("Rename")
		require.NoError(t, Verify(t.Context(), c.path, names, fresh, leave))
		step("Verify")
		done, err := Renamed(t.Context(), c.path, old, fresh)
		require.NoError(t, err)
		require.True(t, done)
		step("Renamed")
		require.NoError(t, Restore(t.Context(), c.path, old, fresh))
		step("Restore")
		require.Equal(t, before, dump(t, c.path))
		step("dump")
	}
}
