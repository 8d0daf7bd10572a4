package metadb

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// renamed returns the expected dump after Rename of the database of everything: only the buckets of
// the snapshots and the entries in this list have the new name.
func renamed(t *testing.T, before []string) []string {
	t.Helper()
	entries := []string{
		`"v1"/"k8s.io"/"labels"/"containerd.io/defaults/snapshotter" = "devmapper"`,
		`"v1"/"k8s.io"/"containers"/"c1"/"snapshotter" = "devmapper"`,
		`"v1"/"k8s.io"/"containers"/"no-snapshot"/"snapshotter" = "devmapper"`,
		`"v1"/"k8s.io"/"containers"/"c1"/"labels"/"containerd.io/gc.ref.snapshot.devmapper/a/b" =`,
		`/"labels"/"containerd.io/gc.ref.snapshot.devmapper" = "sha256:3"`,
		`/"labels"/"containerd.io/gc.ref.snapshot.devmapper/other" = "sha256:1"`,
		`"docker.io/library/busybox:1"/"labels"/"containerd.io/gc.bref.snapshot.devmapper" =`,
		`"docker.io/library/busybox:1"/"labels"/"containerd.io/gc.cond.snapshot.devmapper" =`,
		`/"devmapper"/"c1"/"labels"/"containerd.io/gc.ref.snapshot.devmapper" = "sha256:1"`,
		`"overlayfs"/"devmapper"/"labels"/"containerd.io/gc.ref.snapshot.devmapper" = "sha256:2"`,
		`"sandboxes"/"pod"/"labels"/"containerd.io/gc.ref.snapshot.devmapper/pause" =`,
		`/"labels"/"containerd.io/gc.bref.snapshot.devmapper/x" =`,
		`/"labels"/"containerd.io/gc.ref.snapshot.devmapper" = "none"`,
		`"leases"/"pull"/"snapshots"/"devmapper"/`,
		`"leases"/"keep"/"snapshots"/"devmapper"/`,
		`"leases"/"all"/"snapshots"/"devmapper"/`,
	}
	used := make([]bool, len(entries))
	var after []string
	for _, line := range before {
		for i, e := range entries {
			if strings.Contains(line, e) {
				at := strings.LastIndex(e, old)
				line, used[i] = strings.Replace(line, e, e[:at]+fresh+e[at+len(old):], 1), true
			}
		}
		for _, ns := range []string{"k8s.io", "odd", "emptied", "dirty"} {
			bucket := `"v1"/"` + ns + `"/"snapshots"/"devmapper"/`
			if rest, ok := strings.CutPrefix(line, bucket); ok {
				line = `"v1"/"` + ns + `"/"snapshots"/"thinsnap"/` + rest
			}
		}
		after = append(after, line)
	}
	require.NotContains(t, used, false, "an entry of the list is not in the database: %v", used)
	slices.Sort(after)
	return after
}

// TestRenameChangesNothingElse compares all buckets, keys, values and sequences.
func TestRenameChangesNothingElse(t *testing.T) {
	path, _ := everything(t)
	before := dump(t, path)
	names, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	require.Equal(t, before, dump(t, path), "Read has changed the file")

	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	after := dump(t, path)
	require.Equal(t, renamed(t, before), after)
	require.NoError(t, Verify(t.Context(), path, names, fresh, nil))
	require.ErrorIs(t, Rename(t.Context(), path, old, fresh, nil), errdefs.ErrAlreadyExists)
	require.Equal(t, after, dump(t, path))

	back, err := Read(t.Context(), path, fresh)
	require.NoError(t, err)
	require.Equal(t, names.Digest, back.Digest)
	require.NoError(t, Rename(t.Context(), path, fresh, old, nil))
	require.Equal(t, before, dump(t, path), "after renaming twice")
	require.NoError(t, Verify(t.Context(), path, back, old, nil))
	again, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	require.Equal(t, names, again)
}

// TestContainerdReadsIt: containerd's own code finds everything under the new name, and its
// collector removes exactly the snapshots without references.
func TestContainerdReadsIt(t *testing.T) {
	path, backends := everything(t)
	dir := strings.TrimSuffix(path, "/meta.db")
	c := start(t, dir, backends)
	want := c.state(old)
	c.stop()
	keys := backends[old].keys()
	require.Greater(t, len(keys), len(odd)+4)

	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	backends[fresh] = backends[old]
	delete(backends, old)
	c = start(t, dir, backends)
	require.Equal(t, want, c.state(fresh))
	c.collect()
	require.Equal(t, want, c.state(fresh), "the collector removes no older snapshot")
	require.Equal(t, keys, backends[fresh].keys())

	// A new snapshot has a new number, and so a new name in the snapshotter.
	k8s := c.lease(c.in("k8s.io"), "new", fresh)
	emptied := c.lease(c.in("emptied"), "new", fresh)
	c.prepare(k8s, fresh, "c2", "sha256:3", nil)
	c.prepare(emptied, fresh, "gone", "", nil)
	require.Contains(t, backends[fresh].keys(), "emptied/3/gone", "numbers 1 and 2 were used before")

	// The collector removes snapshots when the renamed references are removed.
	require.NoError(t, c.Snapshotter(fresh).Remove(k8s, "c2"))
	lm := metadata.NewLeaseManager(c.DB)
	all, err := lm.List(c.in("k8s.io"))
	require.NoError(t, err)
	for _, l := range all {
		require.NoError(t, lm.Delete(c.in("k8s.io"), l))
	}
	c.collect()
	sn := c.Snapshotter(fresh)
	for _, key := range []string{"c1", "view", "sha256:1", "sha256:3"} {
		_, err := sn.Stat(c.in("k8s.io"), key)
		require.NoError(t, err, "the container, the sandbox and the image keep %s without a lease", key)
	}
	require.NoError(t, metadata.NewContainerStore(c.DB).Delete(c.in("k8s.io"), "c1"))
	require.NoError(t, metadata.NewSandboxStore(c.DB).Delete(c.in("k8s.io"), "pod"))
	c.collect()
	for _, key := range []string{"c1", "view"} {
		_, err := sn.Stat(c.in("k8s.io"), key)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
	_, err = sn.Stat(c.in("k8s.io"), "sha256:3")
	require.NoError(t, err)
	require.NoError(t, metadata.NewImageStore(c.DB).Delete(c.in("k8s.io"), "docker.io/library/busybox:1"))
	require.NoError(t, metadata.NewContainerStore(c.DB).Delete(c.in("k8s.io"), "devmapper"))
	c.collect()
	_, err = sn.Stat(c.in("k8s.io"), "sha256:1")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	// containerd's API cannot change the field, but can write a record that has it.
	store := metadata.NewContainerStore(c.DB)
	x, err := store.Get(c.in("k8s.io"), "no-snapshot")
	require.NoError(t, err)
	x.Labels = map[string]string{"a": "b"}
	_, err = store.Update(c.in("k8s.io"), x)
	require.NoError(t, err)
	x.Snapshotter = old
	_, err = store.Update(c.in("k8s.io"), x)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	c.stop()
}

// TestRenameRefuses: a refused Rename does not change the file.
func TestRenameRefuses(t *testing.T) {
	path, _ := everything(t)
	long := strings.Repeat("x", maxLabel-len(labelRef+old+"/")-len("v"))
	for name, c := range map[string]struct {
		edit     func(tx *bolt.Tx)
		from, to string
		class    error
		text     string
	}{
		"nothing to rename":   {from: "btrfs", to: fresh, class: errdefs.ErrNotFound, text: `nothing in it names "btrfs"`},
		"the same name":       {from: old, to: old, class: errdefs.ErrInvalidArgument},
		"an empty name":       {from: old, to: "", class: errdefs.ErrInvalidArgument},
		"an empty old name":   {from: "", to: fresh, class: errdefs.ErrInvalidArgument},
		"a slash":             {from: old, to: "a/b", class: errdefs.ErrInvalidArgument},
		"a dot":               {from: old, to: ".a", class: errdefs.ErrInvalidArgument},
		"a blank":             {from: old, to: "a b", class: errdefs.ErrInvalidArgument},
		"a byte":              {from: old, to: "a\xff", class: errdefs.ErrInvalidArgument},
		"the name of another": {from: old, to: "overlayfs", class: errdefs.ErrAlreadyExists, text: `names "overlayfs" already`},
		"a snapshot": {
			edit:  func(tx *bolt.Tx) { bucket(tx, "v1", "without", "snapshots", fresh, "x") },
			class: errdefs.ErrAlreadyExists, text: "v1/without/snapshots/thinsnap names",
		},
		"a lease": {
			edit:  func(tx *bolt.Tx) { put(bucket(tx, "v1", "z", "leases", "l", "snapshots", fresh), "x", "") },
			class: errdefs.ErrAlreadyExists, text: "v1/z/leases/l/snapshots/thinsnap",
		},
		"a container": {
			edit:  func(tx *bolt.Tx) { put(bucket(tx, "v1", "z", "containers", "c"), "snapshotter", fresh) },
			class: errdefs.ErrAlreadyExists, text: "v1/z/containers/c/snapshotter",
		},
		"a label": {
			edit: func(tx *bolt.Tx) {
				put(bucket(tx, "v1", "z", "images", "i", "labels"), labelBackRef+fresh+"/x", "y")
			},
			class: errdefs.ErrAlreadyExists, text: "v1/z/images/i/labels/",
		},
		"a label that gets too long": {
			edit: func(tx *bolt.Tx) {
				put(bucket(tx, "v1", "z", "images", "i", "labels"), labelRef+old+"/"+long, "v")
			},
			to: "devmapper9", class: errdefs.ErrFailedPrecondition, text: "choose a shorter name",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := copyFile(t, path)
			if c.edit != nil {
				edit(t, path, func(tx *bolt.Tx) error { c.edit(tx); return nil })
				c.from = old
				if c.to == "" {
					c.to = fresh
				}
			}
			before, err := os.ReadFile(path)
			require.NoError(t, err)
			err = Rename(t.Context(), path, c.from, c.to, nil)
			require.ErrorIs(t, err, c.class)
			require.ErrorContains(t, err, c.text)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(before, after), "the file changed")
		})
	}
}

// TestRenameMakesLabelsShorter: a label at the limit can get a shorter name.
func TestRenameMakesLabelsShorter(t *testing.T) {
	path, _ := everything(t)
	key := labelCondition + "./" + old + "/"
	key += strings.Repeat("x", maxLabel-len(key)-len("v"))
	edit(t, path, func(tx *bolt.Tx) error {
		put(bucket(tx, "v1", "z", "content", "blob", "sha256:0", "labels"), key, "v")
		put(bucket(tx, "v1", "z", "content", "blob", "sha256:0", "labels"), labelCondition+old, "")
		return nil
	})
	before := dump(t, path)
	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	names, err := Read(t.Context(), path, fresh)
	require.NoError(t, err)
	z := names.Namespaces[len(names.Namespaces)-1]
	require.Equal(t, []Label{
		{"content/blob/sha256:0", strings.Replace(key, old, fresh, 1), "v"},
		{"content/blob/sha256:0", labelCondition + fresh, ""},
	}, z.Labels)
	require.NoError(t, Rename(t.Context(), path, fresh, old, nil))
	require.Equal(t, before, dump(t, path))
}

// TestFileStays: the file remains the same, with its owner, mode and attributes. A freelist in the
// file, which containerd does not write, is accepted.
func TestFileStays(t *testing.T) {
	path, _ := everything(t)
	db, err := bolt.Open(path, 0o600, nil) // writes the freelist
	require.NoError(t, err)
	require.NoError(t, db.Close())
	require.NoError(t, os.Chmod(path, 0o640))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(path, 1234, 4321))
	}
	if err := unix.Setxattr(path, "user.label", []byte("containerd_var_lib_t"), 0); !errors.Is(err, unix.ENOTSUP) {
		require.NoError(t, err)
	}
	state := func() (unix.Stat_t, string) {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st))
		value := make([]byte, 99)
		n, _ := unix.Getxattr(path, "user.label", value)
		return unix.Stat_t{Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid, Nlink: st.Nlink}, string(value[:max(n, 0)])
	}
	before := dump(t, path)
	wantStat, wantLabel := state()
	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	gotStat, gotLabel := state()
	require.Equal(t, wantStat, gotStat)
	require.Equal(t, wantLabel, gotLabel)
	require.Equal(t, uint32(unix.S_IFREG|0o640), gotStat.Mode)
	db, err = bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			require.NoError(t, err)
		}
		return nil
	}))
	require.NoError(t, db.Close())
	require.Equal(t, renamed(t, before), dump(t, path))
}

// TestRestoreKeepsTheSequence: Restore merges an empty bucket that containerd made after Rename,
// and no number is used twice.
func TestRestoreKeepsTheSequence(t *testing.T) {
	path, _ := everything(t)
	before := dump(t, path)
	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	edit(t, path, func(tx *bolt.Tx) error {
		bucket(tx, "v1", "k8s.io", keySnapshots, old)
		return bucket(tx, "v1", "emptied", keySnapshots, old).SetSequence(3)
	})
	require.NoError(t, Restore(t.Context(), path, old, fresh))
	i := slices.Index(before, `"v1"/"emptied"/"snapshots"/"devmapper"/ sequence 2`)
	require.GreaterOrEqual(t, i, 0)
	before[i] = `"v1"/"emptied"/"snapshots"/"devmapper"/ sequence 3`
	require.Equal(t, before, dump(t, path))
}

func put(b *bolt.Bucket, key, value string) {
	if err := b.Put([]byte(key), []byte(value)); err != nil {
		panic(err)
	}
}
