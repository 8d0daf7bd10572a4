package adopt

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	testPool  = "pool"
	testProxy = "thinsnap"
)

// A fixture has containerd's three databases, and a kernel whose state is a file, so that it
// survives a killed process.
type fixture struct{ dir string }

// newFixture has containerd's code make the databases, with two layers, a container with a mapped
// device, and a damaged container.
func newFixture(t *testing.T) fixture {
	t.Helper()
	return newFixtureIn(t, inMemory(t))
}

// inMemory returns a directory in memory if the machine has one, because its syncs cost nothing.
// The tests that use it cut no power.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "adopt-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "fixture")
}

func newFixtureIn(t *testing.T, dir string) fixture {
	t.Helper()
	s := fixture{dir}
	o := s.options()
	for _, dir := range []string{o.RootPath, filepath.Dir(newRecord(o).metaPath()), o.Config.Root} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	s.builtin(t, func(ctx context.Context, pool *devmapper.PoolMetadata) error {
		for _, c := range []struct {
			name, key, parent string
		}{{"default/2/a", "default/1/x", ""}, {"default/4/b", "default/3/x", "default/2/a"}} {
			if err := prepareKey(ctx, pool, c.key, c.parent); err != nil {
				return err
			}
			if _, err := storage.CommitActive(ctx, c.key, c.name, snapshots.Usage{Size: 1 << 20}); err != nil {
				return err
			}
		}
		return errors.Join(prepareKey(ctx, pool, "default/5/c", "default/4/b"),
			prepareKey(ctx, pool, "default/6/damaged", "default/4/b"))
	})
	s.meta(t, func(v1 *bolt.Bucket) {
		put(t, v1, "version", string(binary.AppendVarint(nil, 4)))
		name(t, v1, "devmapper", "a", "default/2/a", "")
		name(t, v1, "devmapper", "b", "default/4/b", "a")
		name(t, v1, "devmapper", "c", "default/5/c", "b")
		name(t, v1, "devmapper", "damaged", "default/6/damaged", "b")
		put(t, v1, "default/containers/c/snapshotter", "devmapper")
		put(t, v1, "default/containers/c/snapshotKey", "c")
		put(t, v1, "default/labels/containerd.io/defaults/snapshotter", "devmapper")
	})
	require.NoError(t, os.Chmod(newRecord(o).metaPath(), 0o640))
	s.setKernel(t, kernel{
		Skip: true, Devices: map[string]IdleDevice{"pool-snap-3": {Name: "pool-snap-3", VolumeID: 3, Sectors: 8}},
	})
	return s
}

// prepareKey makes the changes of the built-in's Prepare.
func prepareKey(ctx context.Context, pool *devmapper.PoolMetadata, key, parent string) error {
	snap, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent)
	if err != nil {
		return err
	}
	info := &devmapper.DeviceInfo{Name: testPool + "-snap-" + snap.ID, Size: 1 << 26, State: devmapper.Activated}
	if parent != "" {
		info.ParentName = testPool + "-snap-" + snap.ParentIDs[0]
	}
	return pool.AddDevice(ctx, info)
}

// builtin calls fn in a transaction of the built-in.
func (s fixture) builtin(t *testing.T, fn func(ctx context.Context, pool *devmapper.PoolMetadata) error) {
	t.Helper()
	store, err := storage.NewMetaStore(filepath.Join(s.options().RootPath, "metadata.db"))
	require.NoError(t, err)
	pool, err := devmapper.NewPoolMetadata(filepath.Join(s.options().RootPath, testPool+".db"))
	require.NoError(t, err)
	require.NoError(t, store.WithTransaction(t.Context(), true, func(ctx context.Context) error { return fn(ctx, pool) }))
	require.NoError(t, errors.Join(store.Close(), pool.Close()))
}

func (s fixture) builtinPool(t *testing.T, fn func(ctx context.Context, pool *devmapper.PoolMetadata) error) {
	t.Helper()
	pool, err := devmapper.NewPoolMetadata(filepath.Join(s.options().RootPath, testPool+".db"))
	require.NoError(t, err)
	require.NoError(t, fn(t.Context(), pool))
	require.NoError(t, pool.Close())
}

func (s fixture) meta(t *testing.T, fn func(v1 *bolt.Bucket)) {
	t.Helper()
	db, err := bolt.Open(newRecord(s.options()).metaPath(), 0o644, &bolt.Options{NoFreelistSync: true})
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		v1, err := tx.CreateBucketIfNotExists([]byte("v1"))
		fn(v1)
		return err
	}))
	require.NoError(t, db.Close())
}

// put stores a value. The path ends with its key, which may have slashes after "labels".
func put(t *testing.T, b *bolt.Bucket, path, value string) {
	t.Helper()
	for {
		first, rest, more := strings.Cut(path, "/")
		if !more {
			break
		}
		var err error
		b, err = b.CreateBucketIfNotExists([]byte(first))
		require.NoError(t, err)
		path = rest
		if first == "labels" {
			break
		}
	}
	require.NoError(t, b.Put([]byte(path), []byte(value)))
}

func name(t *testing.T, v1 *bolt.Bucket, snapshotter, name, key, parent string) {
	t.Helper()
	path := "default/snapshots/" + snapshotter + "/" + name + "/"
	put(t, v1, path+"name", key)
	if parent != "" {
		put(t, v1, path+"parent", parent)
		put(t, v1, "default/snapshots/"+snapshotter+"/"+parent+"/children/"+name, "")
	}
	b := v1.Bucket([]byte("default")).Bucket([]byte("snapshots")).Bucket([]byte(snapshotter))
	require.NoError(t, b.SetSequence(b.Sequence()+2))
}

// nameNew makes containerd name a new snapshot.
func nameNew(t *testing.T) func(v1 *bolt.Bucket) {
	t.Helper()
	return func(v1 *bolt.Bucket) { name(t, v1, "devmapper", "new", "default/7/new", "b") }
}

// pull makes the changes of a pull for another snapshotter.
func pull(t *testing.T, s fixture) {
	t.Helper()
	s.meta(t, func(v1 *bolt.Bucket) {
		name(t, v1, "overlayfs", "layer", "default/1/layer", "")
		put(t, v1, "default/images/busybox/target/digest", "sha256:1")
	})
}

func (s fixture) options() plan.Options {
	o := plan.Options{
		ContainerdRoot: filepath.Join(s.dir, "containerd"), RootPath: filepath.Join(s.dir, "devmapper"), Pool: testPool,
		From: "devmapper", Proxy: testProxy,
	}
	o.Config = config.Default()
	o.Config.Root = filepath.Join(s.dir, "root")
	return o
}

// state is the state that an undo must restore.
type state struct {
	files  map[string]string // the built-in's checksums by file name
	modes  map[string]os.FileMode
	meta   string
	device map[string]IdleDevice
}

func (s fixture) state(t *testing.T) state {
	t.Helper()
	st := state{files: make(map[string]string), modes: make(map[string]os.FileMode)}
	o := s.options()
	entries, err := os.ReadDir(o.RootPath)
	require.NoError(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(o.RootPath, e.Name()))
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		st.files[e.Name()], st.modes[e.Name()] = fmt.Sprintf("%x", sha256.Sum256(b)), info.Mode()
	}
	k, err := s.kernel()
	require.NoError(t, err)
	st.device = k.Devices
	meta := newRecord(o).metaPath()
	info, err := os.Stat(meta)
	require.NoError(t, err)
	st.modes["meta.db"] = info.Mode()
	st.meta = dump(t, meta)
	return st
}

func dump(t *testing.T, path string) string {
	t.Helper()
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	require.NoError(t, err)
	defer db.Close()
	var lines []string
	var walk func(path string, b *bolt.Bucket)
	walk = func(path string, b *bolt.Bucket) {
		lines = append(lines, fmt.Sprintf("%s: %d", path, b.Sequence()))
		require.NoError(t, b.ForEach(func(k, v []byte) error {
			if within := b.Bucket(k); within != nil {
				walk(path+"/"+string(k), within)
			} else {
				lines = append(lines, fmt.Sprintf("%s/%s = %q", path, k, v))
			}
			return nil
		}))
	}
	require.NoError(t, db.View(func(tx *bolt.Tx) error { walk("", tx.Cursor().Bucket()); return nil }))
	return strings.Join(lines, "\n")
}

// requireAdopted fails if the adoption is not complete, or if the store has other keys.
func (s fixture) requireAdopted(t *testing.T, keys ...string) {
	t.Helper()
	o := s.options()
	require.NoError(t, Unfinished(o.Config.Root))
	r, err := Read(o.Config.Root)
	require.NoError(t, err)
	require.Equal(t, Adopted, r.Phase)
	store, err := metadata.Open(rootdir.Store(o.Config.Root), metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	has, err := keysOf(t.Context(), store)
	require.NoError(t, err)
	require.Len(t, has, len(keys))
	for _, key := range keys {
		require.True(t, has[key], key)
	}
	names, err := metadb.Read(t.Context(), r.metaPath(), o.Proxy)
	require.NoError(t, err)
	for _, ns := range names.Namespaces {
		for _, n := range ns.Snapshots {
			require.True(t, has[n.Backend], n.Key)
		}
	}
	names, err = metadb.Read(t.Context(), r.metaPath(), o.From)
	require.NoError(t, err)
	require.Len(t, names.Namespaces, 1)
	require.Len(t, names.Namespaces[0].Snapshots, 1)
	require.Equal(t, "damaged", names.Namespaces[0].Snapshots[0].Key)
	require.Equal(t, len(keys), r.Snapshots)
	require.Equal(t, 1, r.Left)
	for _, path := range []string{r.poolPath(), r.snapshotsPath()} {
		blocked, err := isBlocked(path)
		require.NoError(t, err)
		require.True(t, blocked, path)
	}
	requireNames(t, o.RootPath, "metadata.db", "metadata.db.adopted", "pool.db", "pool.db.adopted")
	requireNames(t, rootdir.Adoption(o.Config.Root), backupName, closedName, storeName)
	k, err := s.kernel()
	require.NoError(t, err)
	require.False(t, k.Skip)
	require.Empty(t, k.Devices)
}

// requireBack fails if thinsnap has any file left except backups, or if the built-in's state is not
// in before.
func (s fixture) requireBack(t *testing.T, before ...state) {
	t.Helper()
	if now := s.state(t); !slices.ContainsFunc(before, func(want state) bool { return reflect.DeepEqual(want, now) }) {
		require.Equal(t, before[0], now)
	}
	root := s.options().Config.Root
	require.NoError(t, Unfinished(root))
	requireNames(t, root, "adopt")
	_, err := Read(root)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func requireNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(want)
	require.Equal(t, want, names)
}
