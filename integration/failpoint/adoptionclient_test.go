package failpoint

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// client is containerd's metadata with one snapshotter.
type client struct {
	*builtin
	*metadata.DB
	name string
	sn   snapshots.Snapshotter
}

// client opens containerd's database for the time of f.
func (s *builtin) client(name string, sn snapshots.Snapshotter, f func(c *client)) {
	s.Helper()
	require.NoError(s, os.MkdirAll(filepath.Dir(s.metaPath()), 0o700))
	db, err := bolt.Open(s.metaPath(), 0o644, &bolt.Options{NoFreelistSync: true})
	require.NoError(s, err)
	c := &client{s, metadata.NewDB(db, nil, map[string]snapshots.Snapshotter{name: sn}), name, sn}
	require.NoError(s, c.Init(s.Context()))
	f(c)
	require.NoError(s, db.Close())
}

// spaces returns the namespaces with content. All have the same names of snapshots.
func spaces() []string {
	if dmtest.Thorough() {
		return []string{"default", "k8s.io"}
	}
	return []string{"default"}
}

func (c *client) in(ns string) context.Context {
	return namespaces.WithNamespace(c.Context(), ns)
}

// contents returns the files of each snapshot.
func contents() map[string][]string {
	return map[string][]string{
		"one": {"one"}, "two": {"one", "two"}, "container": {"one", "two", "container"}, "view": {"one", "two"},
	}
}

// fill makes two layers, a container, and a View.
func (c *client) fill() {
	c.Helper()
	for _, ns := range spaces() {
		ctx := c.in(ns)
		sn := c.Snapshotter(c.name)
		manager := metadata.NewLeaseManager(c.DB)
		_, err := manager.Create(ctx, leases.WithID("keep"))
		require.NoError(c, err)
		leased := leases.WithLease(ctx, "keep")
		parent := ""
		for _, layer := range []string{"one", "two"} {
			mounts, err := sn.Prepare(leased, "extract-"+layer, parent)
			require.NoError(c, err)
			c.writeTo(mounts, layer)
			require.NoError(c, sn.Commit(leased, layer, "extract-"+layer))
			parent = layer
		}
		mounts, err := sn.Prepare(ctx, "container", "two")
		require.NoError(c, err)
		c.writeTo(mounts, "container")
		_, err = metadata.NewContainerStore(c.DB).Create(ctx, containers.Container{
			ID: "container", Snapshotter: c.name, SnapshotKey: "container", Runtime: containers.RuntimeInfo{Name: "runc"},
			Spec: &anypb.Any{TypeUrl: "spec", Value: []byte("{}")},
		})
		require.NoError(c, err)
		_, err = sn.View(leased, "view", "two")
		require.NoError(c, err)
		// With async_remove, its volume stays until the next collection.
		_, err = sn.Prepare(ctx, "removed", "two")
		require.NoError(c, err)
		require.NoError(c, c.sn.Remove(ctx, ns+"/7/removed"))
		require.NoError(c, c.forget(ns, "removed"))
	}
}

// forget removes a name without calling the snapshotter.
func (c *client) forget(ns, name string) error {
	return c.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1")).Bucket([]byte(ns)).Bucket([]byte("snapshots")).Bucket([]byte(c.name))
		if err := b.Bucket([]byte("two")).Bucket([]byte("children")).Delete([]byte(name)); err != nil {
			return err
		}
		return b.DeleteBucket([]byte(name))
	})
}

// writeTo writes the file of a name.
func (c *client) writeTo(mounts []mount.Mount, name string) {
	c.Helper()
	require.NoError(c, mount.WithTempMount(c.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, name), content(name), 0o600)
	}))
}

// requireContent requires that each snapshot has its files.
func (c *client) requireContent() {
	c.Helper()
	for _, ns := range spaces() {
		ctx, sn := c.in(ns), c.Snapshotter(c.name)
		var names []string
		require.NoError(c, sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			names = append(names, info.Name)
			return nil
		}))
		slices.Sort(names)
		require.Equal(c, slices.Sorted(maps.Keys(contents())), names)
		for name, files := range contents() {
			info, err := sn.Stat(ctx, name)
			require.NoError(c, err)
			key := name
			if info.Kind == snapshots.KindCommitted {
				key = "look-at-" + name
				_, err := sn.View(ctx, key, name)
				require.NoError(c, err)
			}
			mounts, err := sn.Mounts(ctx, key)
			require.NoError(c, err)
			require.NoError(c, mount.WithTempMount(c.Context(), mounts, func(dir string) error {
				for _, file := range files {
					b, err := os.ReadFile(filepath.Join(dir, file))
					require.NoError(c, err)
					require.Equal(c, content(file), b)
				}
				return nil
			}))
			if key != name {
				require.NoError(c, sn.Remove(ctx, key))
			}
		}
	}
}

func (c *client) collect() {
	c.Helper()
	_, err := c.GarbageCollect(c.Context())
	require.NoError(c, err)
}

func (c *client) addAndRemove(name string) {
	c.Helper()
	ctx, sn := c.in("default"), c.Snapshotter(c.name)
	mounts, err := sn.Prepare(ctx, name, "two")
	require.NoError(c, err)
	c.writeTo(mounts, name)
	require.NoError(c, sn.Remove(ctx, name))
	c.collect()
}

func (c *client) removeAll() {
	c.Helper()
	for _, ns := range spaces() {
		ctx, sn := c.in(ns), c.Snapshotter(c.name)
		for _, name := range []string{"view", "container", "two", "one"} {
			require.NoError(c, sn.Remove(ctx, name))
		}
	}
	c.collect()
	cleaner, ok := c.sn.(snapshots.Cleaner)
	require.True(c, ok)
	require.NoError(c, cleaner.Cleanup(c.Context()))
}
