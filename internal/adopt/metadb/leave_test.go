package metadb

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// damaged is a database with an image that has a damaged layer.
type damaged struct {
	dir, path string
	adopted   *backend // the snapshots that the new snapshotter has adopted
	builtin   *backend
	leave     LeaveOut
}

// makeDamaged makes containerd create a database. It has an image of five layers with a damaged
// third one, a container and a View; an intact image with a container; and a View of layer 2 with
// damage of its own. Another namespace has the same names without damage.
func makeDamaged(t testing.TB) *damaged {
	t.Helper()
	d := &damaged{dir: t.TempDir(), builtin: newBackend(), adopted: newBackend()}
	c := start(t, d.dir, map[string]*backend{old: d.builtin, "overlayfs": newBackend()})
	for _, ns := range []string{"k8s.io", "moby"} {
		ctx := c.lease(c.in(ns), "pull", old)
		c.image(ctx, "broken", map[string]string{labelRef + old: c.layers(ctx, old, "1", "2", "3", "4", "5")},
			map[string]string{labelRef + old + "/a": "2", labelCondition + "." + old: "usedat<1h|4", labelBackRef + old: "1"})
		c.prepare(ctx, old, "c1", "5", map[string]string{labelRef + old + "/sibling": "c2", "other": "label"})
		c.container(ctx, "c1", old, "c1", nil)
		_, err := c.Snapshotter(old).View(ctx, "view", "4")
		require.NoError(t, err)
		c.prepare(ctx, old, "extract 6", "2", nil)
		require.NoError(t, c.Snapshotter(old).Commit(ctx, "6", "extract 6"))
		c.image(ctx, "whole", map[string]string{labelRef + old: "6"}, nil)
		c.prepare(ctx, old, "c2", "6", map[string]string{labelRef + old + "/sibling": "c1"})
		c.container(ctx, "c2", old, "c2", nil)
		_, err = c.Snapshotter(old).View(ctx, "alone", "2")
		require.NoError(t, err)
		c.lease(c.in(ns), "left out", old, "alone")
		c.namespaceLabel(ns, labelDefault, old)
	}
	c.stop()
	d.path = c.path
	d.leave = LeaveOut{"k8s.io": {"3": true, "4": true, "5": true, "c1": true, "view": true, "alone": true, "gone": true}}
	for key, info := range d.builtin.info {
		ns, name, _ := strings.Cut(key, "/")
		if _, name, _ = strings.Cut(name, "/"); !d.leave[ns][name] {
			d.adopted.info[key] = info
		}
	}
	require.Len(t, d.adopted.info, len(d.builtin.info)-6)
	return d
}

// rename leaves out the damaged snapshots, and starts containerd with the new snapshotter.
func (d *damaged) rename(t testing.TB) *containerd {
	t.Helper()
	names, err := Read(t.Context(), d.path, old)
	require.NoError(t, err)
	require.NoError(t, Rename(t.Context(), d.path, old, fresh, d.leave))
	require.NoError(t, Verify(t.Context(), d.path, names, fresh, d.leave))
	return start(t, d.dir, map[string]*backend{fresh: d.adopted, "overlayfs": newBackend()})
}

func TestLeaveOut(t *testing.T) {
	d := makeDamaged(t)
	before, err := Read(t.Context(), d.path, old)
	require.NoError(t, err)
	require.NoError(t, Rename(t.Context(), d.path, old, fresh, d.leave))
	require.NoError(t, Verify(t.Context(), d.path, before, fresh, d.leave))
	left, err := Read(t.Context(), d.path, old)
	require.NoError(t, err)
	moved, err := Read(t.Context(), d.path, fresh)
	require.NoError(t, err)
	snapshotKeys := func(ns Namespace) []string {
		all := make([]string, 0, len(ns.Snapshots))
		for _, s := range ns.Snapshots {
			all = append(all, s.Key)
		}
		return all
	}
	labelsOf := func(ns Namespace) []string {
		all := make([]string, 0, len(ns.Labels))
		for _, l := range ns.Labels {
			object, _, _ := strings.Cut(l.Object, ":")
			all = append(all, object+" "+strings.TrimPrefix(l.Key, "containerd.io/gc.")+" "+l.Value)
		}
		return all
	}

	require.Len(t, left.Namespaces, 1, "the other namespace has no damage")
	k8s, adopted := left.Namespaces[0], space(t, moved, "k8s.io")
	require.Equal(t, []string{"3", "4", "5", "alone", "c1", "view"}, snapshotKeys(k8s))
	require.Equal(t, []string{"1", "2", "6", "c2"}, snapshotKeys(adopted))
	require.Equal(t, space(t, before, "k8s.io").Sequence, k8s.Sequence)
	require.Equal(t, k8s.Sequence, adopted.Sequence)
	require.False(t, k8s.Default)
	require.True(t, adopted.Default)
	require.Empty(t, k8s.Containers)
	require.Equal(t, []Container{{"c1", "c1"}, {"c2", "c2"}}, adopted.Containers, "so that their client can remove them")
	require.Equal(t, []Lease{{"left out", []string{"alone"}}, {"pull", snapshotKeys(k8s)}}, k8s.Leases)
	require.Equal(t, []Lease{{"pull", snapshotKeys(adopted)}}, adopted.Leases)
	require.Equal(t, []string{
		"containers/c1 ref.snapshot.devmapper/left-out c1", "content/blob/sha256 ref.snapshot.devmapper 5", "images/broken cond.snapshot.devmapper usedat<1h|4",
		"snapshots/thinsnap/c2 ref.snapshot.devmapper/sibling c1",
	}, labelsOf(k8s))
	require.Equal(t, []string{
		"content/blob/sha256 ref.snapshot.thinsnap 6", "images/broken bref.snapshot.thinsnap 1",
		"images/broken ref.snapshot.thinsnap/a 2", "snapshots/devmapper/3 ref.snapshot.thinsnap/left-out-parent 2",
		"snapshots/devmapper/alone ref.snapshot.thinsnap/left-out-parent 2",
		"snapshots/devmapper/c1 ref.snapshot.thinsnap/sibling c2",
	}, labelsOf(adopted))
	require.Equal(t, []string{"6"}, adopted.Snapshots[1].Children, "without 3")
	require.Equal(t, []Problem{{`container "c1" in namespace "k8s.io"`, `its snapshot "c1" does not exist`}}, moved.Problems)
	require.Equal(t, "2", k8s.Snapshots[0].Parent, "for Restore")
	require.False(t, moved.Vacant())
	require.Equal(t, snapshotKeys(space(t, before, "moby")), snapshotKeys(space(t, moved, "moby")))
}

// TestLeaveOutAll: everything is left out.
func TestLeaveOutAll(t *testing.T) {
	d := makeDamaged(t)
	before, err := Read(t.Context(), d.path, old)
	require.NoError(t, err)
	all := LeaveOut{}
	edit(t, d.path, func(tx *bolt.Tx) error { // the containers would have the new name
		for _, ns := range before.Namespaces {
			if err := bucket(tx, "v1", ns.Name).DeleteBucket([]byte(keyContainers)); err != nil {
				return err
			}
		}
		return nil
	})
	was := dump(t, d.path)
	before, err = Read(t.Context(), d.path, old)
	require.NoError(t, err)
	for _, ns := range before.Namespaces {
		all[ns.Name] = map[string]bool{}
		for _, s := range ns.Snapshots {
			all[ns.Name][s.Key] = true
		}
	}
	for range 2 {
		require.NoError(t, Rename(t.Context(), d.path, old, fresh, all), "also a second time")
		require.NoError(t, Verify(t.Context(), d.path, before, fresh, all))
		moved, err := Read(t.Context(), d.path, fresh)
		require.NoError(t, err)
		require.True(t, moved.Vacant())
	}
	require.NoError(t, Restore(t.Context(), d.path, old, fresh))
	require.NoError(t, Restore(t.Context(), d.path, old, fresh))
	require.Equal(t, was, dump(t, d.path))
}

// TestCollectorWithoutTheOldSnapshotter: containerd does not have the old snapshotter. It keeps the
// names that are left out, and the layers below them, as long as something refers to them.
func TestCollectorWithoutTheOldSnapshotter(t *testing.T) {
	d := makeDamaged(t)
	c := d.rename(t)
	ctx, adopted, state := c.in("k8s.io"), d.adopted.keys(), c.state(fresh)
	leftOut := func() []string {
		var all []string
		require.NoError(t, c.View(func(tx *bolt.Tx) error {
			all = keys(within(tx.Bucket([]byte(schema)), "k8s.io", keySnapshots, old))
			return nil
		}))
		return all
	}
	c.collect()
	require.Equal(t, adopted, d.adopted.keys())
	require.Equal(t, state, c.state(fresh))
	require.Equal(t, []string{"3", "4", "5", "alone", "c1", "view"}, leftOut())

	c.prepare(ctx, fresh, "new", "", map[string]string{"containerd.io/gc.root": "now"})
	require.Contains(t, d.adopted.keys(), "k8s.io/17/new", "16 numbers were used, also by snapshots that are left out")
	require.NoError(t, c.Snapshotter(fresh).Remove(ctx, "new"))

	// Without leases, containers and images, the snapshots that are left out keep their layers
	// until the end.
	lm, is := metadata.NewLeaseManager(c.DB), metadata.NewImageStore(c.DB)
	all, err := lm.List(ctx)
	require.NoError(t, err)
	for _, l := range all {
		require.NoError(t, lm.Delete(ctx, l))
	}
	require.NoError(t, metadata.NewContainerStore(c.DB).Delete(ctx, "c2"))
	require.NoError(t, is.Delete(ctx, "whole"))
	c.collect()
	require.Equal(t, []string{"3", "4", "5", "c1"}, leftOut(), "two Views had only a lease")
	require.Equal(t, []string{"k8s.io/2/1", "k8s.io/4/2", "k8s.io/14/6", "k8s.io/15/c2"}, in(d.adopted, "k8s.io"), "c1 has a label")
	// A client with WithSnapshotCleanup does this, and accepts NotFound.
	require.ErrorIs(t, c.Snapshotter(fresh).Remove(ctx, "c1"), errdefs.ErrNotFound)
	require.NoError(t, metadata.NewContainerStore(c.DB).Delete(ctx, "c1"))
	c.collect()
	require.Equal(t, []string{"3", "4", "5"}, leftOut())
	require.Equal(t, []string{"k8s.io/2/1", "k8s.io/4/2"}, in(d.adopted, "k8s.io"))
	require.NoError(t, is.Delete(ctx, "broken"))
	c.collect()
	require.Empty(t, leftOut())
	require.Empty(t, in(d.adopted, "k8s.io"))
	require.Len(t, in(d.adopted, "moby"), 10)
	c.stop()
}

// TestLeaveOutRefuses: a refused Rename does not change the file.
func TestLeaveOutRefuses(t *testing.T) {
	d := makeDamaged(t)
	before, err := os.ReadFile(d.path)
	require.NoError(t, err)
	for key, child := range map[string]string{"3": "4", "4": "5", "5": "c1"} {
		leave := LeaveOut{"k8s.io": maps.Clone(d.leave["k8s.io"])}
		leave["k8s.io"][child] = false
		err := Rename(t.Context(), d.path, old, fresh, leave)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, fmt.Sprintf(`snapshot %q in namespace "k8s.io" has the parent %q`, child, key))
	}
	err = Rename(t.Context(), d.path, old, fresh, LeaveOut{"moby": {"5": true, "4": false}})
	require.ErrorContains(t, err, `snapshot "c1" in namespace "moby" has the parent "5", which is left out: leave it out, too`)
	after, err := os.ReadFile(d.path)
	require.NoError(t, err)
	require.Equal(t, before, after)

	edit(t, d.path, func(tx *bolt.Tx) error {
		put(bucket(tx, "v1", "k8s.io", keySnapshots, old, "alone", keyLabels), labelRef+old+parentSuffix, "1")
		return nil
	})
	err = Rename(t.Context(), d.path, old, fresh, d.leave)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.ErrorContains(t, err, `snapshot "alone": it has a label`)
	require.NoError(t, Rename(t.Context(), d.path, old, fresh, LeaveOut{"none": {"x": true}}), "a snapshot that does not exist is no obstacle")
}

// in returns the keys of a namespace in the order of their numbers.
func in(b *backend, ns string) []string {
	var all []string
	for _, key := range b.keys() {
		if strings.HasPrefix(key, ns+"/") {
			all = append(all, key)
		}
	}
	slices.SortStableFunc(all, func(a, b string) int { return len(filepath.Dir(a)) - len(filepath.Dir(b)) })
	return all
}
