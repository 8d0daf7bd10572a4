package metadb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/anypb"
)

// backend is a snapshotter with records but no files.
type backend struct {
	mu   sync.Mutex
	info map[string]snapshots.Info
	down error // the error of Prepare and View
}

func newBackend() *backend { return &backend{info: make(map[string]snapshots.Info)} }

func (b *backend) create(kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	if b.down != nil {
		return nil, b.down
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	info := snapshots.Info{Kind: kind, Name: key, Parent: parent, Created: time.Now(), Updated: time.Now()}
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	if _, ok := b.info[key]; ok {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	if p, ok := b.info[parent]; parent != "" && (!ok || p.Kind != snapshots.KindCommitted) {
		return nil, fmt.Errorf("parent %q: %w", parent, errdefs.ErrNotFound)
	}
	b.info[key] = info
	return []mount.Mount{{Source: key}}, nil
}

func (b *backend) get(key string) (snapshots.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	info, ok := b.info[key]
	if !ok {
		return snapshots.Info{}, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
	}
	info.Labels = maps.Clone(info.Labels)
	return info, nil
}

func (b *backend) Stat(_ context.Context, key string) (snapshots.Info, error) { return b.get(key) }

func (b *backend) Update(_ context.Context, info snapshots.Info, _ ...string) (snapshots.Info, error) {
	return b.get(info.Name)
}

func (b *backend) Usage(_ context.Context, key string) (snapshots.Usage, error) {
	_, err := b.get(key)
	return snapshots.Usage{}, err
}

func (b *backend) Mounts(_ context.Context, key string) ([]mount.Mount, error) {
	_, err := b.get(key)
	return []mount.Mount{{Source: key}}, err
}

func (b *backend) Prepare(_ context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return b.create(snapshots.KindActive, key, parent, opts)
}

func (b *backend) View(_ context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return b.create(snapshots.KindView, key, parent, opts)
}

func (b *backend) Commit(_ context.Context, name, key string, _ ...snapshots.Opt) error {
	info, err := b.get(key)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.info, key)
	info.Name, info.Kind = name, snapshots.KindCommitted
	b.info[name] = info
	return nil
}

func (b *backend) Remove(_ context.Context, key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, info := range b.info {
		if info.Parent == key {
			return fmt.Errorf("snapshot %q has a child: %w", key, errdefs.ErrFailedPrecondition)
		}
	}
	delete(b.info, key)
	return nil
}

func (b *backend) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	for _, key := range b.keys() {
		if info, err := b.get(key); err == nil {
			if err := fn(ctx, info); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *backend) Close() error { return nil }

func (b *backend) keys() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.info))
}

// containerd runs containerd's own code on a meta.db.
type containerd struct {
	t    testing.TB
	path string // of meta.db
	bolt *bolt.DB
	*metadata.DB
	backends map[string]*backend
}

// start opens the database in dir, with the given snapshotters.
func start(t testing.TB, dir string, backends map[string]*backend) *containerd {
	t.Helper()
	c := &containerd{t: t, path: filepath.Join(dir, "meta.db"), backends: backends}
	var err error
	// The options are those of containerd's plugins/metadata/plugin.go.
	c.bolt, err = bolt.Open(c.path, 0o644, &bolt.Options{NoFreelistSync: true, NoStatistics: true, NoSync: true})
	require.NoError(t, err)
	store, err := local.NewStore(filepath.Join(dir, "content"))
	require.NoError(t, err)
	all := make(map[string]snapshots.Snapshotter)
	for name, b := range backends {
		all[name] = b
	}
	c.DB = metadata.NewDB(c.bolt, store, all)
	require.NoError(t, c.Init(t.Context()))
	return c
}

func (c *containerd) stop() { require.NoError(c.t, c.bolt.Close()) }

func (c *containerd) in(ns string) context.Context {
	return namespaces.WithNamespace(c.t.Context(), ns)
}

// layers commits a chain of snapshots, like an unpacker, and returns the key of the last one.
func (c *containerd) layers(ctx context.Context, snapshotter string, keys ...string) string {
	c.t.Helper()
	sn, parent := c.Snapshotter(snapshotter), ""
	for _, key := range keys {
		extract := "extract-1 " + key
		_, err := sn.Prepare(ctx, extract, parent, snapshots.WithLabels(map[string]string{"of": "layer"}))
		require.NoError(c.t, err)
		require.NoError(c.t, sn.Commit(ctx, key, extract))
		parent = key
	}
	return parent
}

func (c *containerd) prepare(ctx context.Context, snapshotter, key, parent string, labels map[string]string) {
	c.t.Helper()
	_, err := c.Snapshotter(snapshotter).Prepare(ctx, key, parent, snapshots.WithLabels(labels))
	require.NoError(c.t, err)
}

// image writes a blob with labels, and an image of it.
func (c *containerd) image(ctx context.Context, name string, onBlob, onImage map[string]string) digest.Digest {
	c.t.Helper()
	text := "config of " + name
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString(text), Size: int64(len(text)),
	}
	err := content.WriteBlob(ctx, c.ContentStore(), name, strings.NewReader(text), desc, content.WithLabels(onBlob))
	require.NoError(c.t, err)
	_, err = metadata.NewImageStore(c.DB).Create(ctx, images.Image{Name: name, Target: desc, Labels: onImage})
	require.NoError(c.t, err)
	return desc.Digest
}

func (c *containerd) container(ctx context.Context, id, snapshotter, key string, labels map[string]string) {
	c.t.Helper()
	_, err := metadata.NewContainerStore(c.DB).Create(ctx, containers.Container{
		ID: id, Snapshotter: snapshotter, SnapshotKey: key, Labels: labels, Image: "an image",
		Runtime: containers.RuntimeInfo{
			Name: "io.containerd.runc.v2", Options: &anypb.Any{TypeUrl: "o", Value: []byte("devmapper")},
		},
		Spec: &anypb.Any{TypeUrl: "spec", Value: []byte(`{"devmapper": "snapshotter"}`)},
	})
	require.NoError(c.t, err)
}

func (c *containerd) sandbox(ctx context.Context, id string, labels map[string]string) {
	c.t.Helper()
	_, err := metadata.NewSandboxStore(c.DB).Create(ctx, sandbox.Sandbox{
		ID: id, Labels: labels, Runtime: sandbox.RuntimeOpts{Name: "io.containerd.kata.v2"},
		Spec: &anypb.Any{TypeUrl: "spec", Value: []byte("devmapper")}, Sandboxer: "podsandbox",
	})
	require.NoError(c.t, err)
}

// lease creates a lease with snapshots of a snapshotter.
func (c *containerd) lease(ctx context.Context, id, snapshotter string, keys ...string) context.Context {
	c.t.Helper()
	m := metadata.NewLeaseManager(c.DB)
	l, err := m.Create(ctx, leases.WithID(id))
	require.NoError(c.t, err)
	for _, key := range keys {
		require.NoError(c.t, m.AddResource(ctx, l, leases.Resource{ID: key, Type: "snapshots/" + snapshotter}))
	}
	return leases.WithLease(ctx, id)
}

func (c *containerd) namespaceLabel(ns, key, value string) {
	c.t.Helper()
	require.NoError(c.t, c.Update(func(tx *bolt.Tx) error {
		return metadata.NewNamespaceStore(tx).SetLabel(c.t.Context(), ns, key, value)
	}))
}

// names returns the Names of the old snapshotter in the open database.
func (c *containerd) names(t testing.TB) (n Names, err error) {
	t.Helper()
	err = c.View(func(tx *bolt.Tx) error {
		n, err = read(t.Context(), tx, old)
		return err
	})
	return n, err
}

func lease(id string) leases.Lease { return leases.Lease{ID: id} }

// collect makes containerd collect garbage in every snapshotter.
func (c *containerd) collect() {
	c.t.Helper()
	ctx := c.in("dirty")
	for name := range c.backends {
		c.prepare(ctx, name, "garbage", "", nil)
		require.NoError(c.t, c.Snapshotter(name).Remove(ctx, "garbage"))
		require.NotEmpty(c.t, c.backends[name].keys())
	}
	_, err := c.GarbageCollect(c.t.Context())
	require.NoError(c.t, err)
}

// state returns the state that a client sees, by namespace, with the collector's effects and
// without the snapshotter's name.
func (c *containerd) state(snapshotter string) []string {
	c.t.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	var all []string
	require.NoError(c.t, c.View(func(tx *bolt.Tx) (err error) {
		all, err = metadata.NewNamespaceStore(tx).List(c.t.Context())
		return err
	}))
	for _, ns := range all {
		ctx := c.in(ns)
		sn := c.Snapshotter(snapshotter)
		require.NoError(c.t, sn.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			m, err := sn.Mounts(ctx, info.Name)
			add("%s snapshot %q of %q: %v, kind %v, labels %d", ns, info.Name, info.Parent, m, info.Kind, len(info.Labels))
			return err
		}))
		cs, err := metadata.NewContainerStore(c.DB).List(ctx)
		require.NoError(c.t, err)
		for _, x := range cs {
			add("%s container %s: %t %q %s", ns, x.ID, x.Snapshotter == snapshotter, x.SnapshotKey, x.Spec)
			if x.Snapshotter == snapshotter && x.SnapshotKey != "" {
				_, err := sn.Stat(ctx, x.SnapshotKey)
				add("%s snapshot of container %s: %t", ns, x.ID, err == nil)
			}
		}
		is, err := metadata.NewImageStore(c.DB).List(ctx)
		require.NoError(c.t, err)
		for _, x := range is {
			add("%s image %s: %s, labels %d", ns, x.Name, x.Target.Digest, len(x.Labels))
		}
		require.NoError(c.t, c.ContentStore().Walk(ctx, func(info content.Info) error {
			add("%s blob %s, labels %d", ns, info.Digest, len(info.Labels))
			return nil
		}))
		ls, err := metadata.NewLeaseManager(c.DB).List(ctx)
		require.NoError(c.t, err)
		for _, x := range ls {
			rs, err := metadata.NewLeaseManager(c.DB).ListResources(ctx, x)
			require.NoError(c.t, err)
			for _, r := range rs {
				add("%s lease %s: %q %t", ns, x.ID, r.ID, r.Type == "snapshots/"+snapshotter)
			}
		}
		ss, err := metadata.NewSandboxStore(c.DB).List(ctx)
		if !errors.Is(err, errdefs.ErrNotFound) {
			require.NoError(c.t, err)
		}
		for _, x := range ss {
			add("%s sandbox %s, labels %d", ns, x.ID, len(x.Labels))
		}
	}
	slices.Sort(lines)
	return lines
}
