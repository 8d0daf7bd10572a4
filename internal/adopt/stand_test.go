package adopt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
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

// A stand is a machine with containerd's three databases, and a kernel that is a file: it outlives a
// process that is killed.
type stand struct{ dir string }

// newStand has containerd's code make the databases: two layers, a container with a mapped device, and
// a damaged container.
func newStand(t *testing.T) stand {
	t.Helper()
	s := stand{t.TempDir()}
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

// prepareKey does what the built-in's Prepare does.
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
func (s stand) builtin(t *testing.T, fn func(ctx context.Context, pool *devmapper.PoolMetadata) error) {
	t.Helper()
	store, err := storage.NewMetaStore(filepath.Join(s.options().RootPath, "metadata.db"))
	require.NoError(t, err)
	pool, err := devmapper.NewPoolMetadata(filepath.Join(s.options().RootPath, testPool+".db"))
	require.NoError(t, err)
	require.NoError(t, store.WithTransaction(t.Context(), true, func(ctx context.Context) error { return fn(ctx, pool) }))
	require.NoError(t, errors.Join(store.Close(), pool.Close()))
}

// meta changes containerd's database.
func (s stand) meta(t *testing.T, fn func(v1 *bolt.Bucket)) {
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

// put stores a value. The path ends with its key; a key with slashes stands after "labels".
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

// name stores a name of a snapshot.
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

// pull does what a pull for another snapshotter does.
func (s stand) pull(t *testing.T) {
	t.Helper()
	s.meta(t, func(v1 *bolt.Bucket) {
		name(t, v1, "overlayfs", "layer", "default/1/layer", "")
		put(t, v1, "default/images/busybox/target/digest", "sha256:1")
	})
}

func (s stand) options() plan.Options {
	o := plan.Options{
		ContainerdRoot: filepath.Join(s.dir, "containerd"), RootPath: filepath.Join(s.dir, "devmapper"), Pool: testPool,
		From: "devmapper", Proxy: testProxy,
	}
	o.Config = config.Default()
	o.Config.Root = filepath.Join(s.dir, "root")
	return o
}

// kernel is the state of the kernel.
type kernel struct {
	Skip      bool // the pool does not zero new blocks
	Devices   map[string]IdleDevice
	Withdrawn int
}

func (s stand) kernel() (k kernel, err error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "kernel.json"))
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	return k, err
}

func (s stand) change(fn func(k *kernel)) error {
	k, err := s.kernel()
	if err != nil {
		return err
	}
	fn(&k)
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(s.dir, "kernel.json"), b, 0o600)
}

func (s stand) setKernel(t *testing.T, k kernel) {
	t.Helper()
	b, err := json.Marshal(k)
	require.NoError(t, err)
	require.NoError(t, writeFile(filepath.Join(s.dir, "kernel.json"), b, 0o600))
}

// fake is the machine of a stand.
type fake struct {
	stand
	obstacle bool
	fail     string // the method that fails
}

var errFake = errors.New("the kernel says no")

func (f fake) failure(method string) error {
	if f.fail == method {
		return errFake
	}
	return nil
}

// plan adopts all keys with an intact name.
func (f fake) plan(ctx context.Context, o plan.Options) (plan.Plan, error) {
	p := plan.Plan{Options: o, LeaveOut: metadb.LeaveOut{}}
	dbs, err := builtin.Read(ctx, o.RootPath, o.Pool)
	if err != nil {
		return p, err
	}
	if p.Names, err = metadb.Read(ctx, newRecord(o).metaPath(), o.From); err != nil {
		return p, err
	}
	if f.obstacle {
		p.Obstacles = []plan.Obstacle{{Subject: "pool", Text: "is in the way", Remedy: "move it"}}
		return p, nil
	}
	p.Adoption = metadata.Adoption{
		Pool: metadata.PoolRecord{
			ID: "id", Mode: metadata.ModeExisting, Name: "thinsnap", BlockSize: 1 << 16, Complete: true, Created: now(),
			Existing: metadata.ExistingPool{MappedDevice: testPool},
		},
		Client: metadata.ClientRecord{Number: 1, Proxy: o.Proxy},
	}
	for _, s := range dbs.Snapshots {
		if strings.HasSuffix(s.Key, "damaged") {
			continue
		}
		d, _ := dbs.Device(s)
		p.Adoption.Snapshots = append(p.Adoption.Snapshots, metadata.Snapshot{
			Key: s.Key, Parent: s.Parent, Kind: s.Kind, Created: s.Created, Updated: s.Updated, VolumeID: d.ID, Size: d.Bytes,
			Filesystem: "ext4",
		})
		if s.Kind == snapshots.KindCommitted {
			p.Adoption.Pool.Existing.Adopted = append(p.Adoption.Pool.Existing.Adopted,
				metadata.AdoptedVolume{VolumeID: d.ID, Filesystem: "ext4", UUID: s.Key})
		}
		p.Rows = append(p.Rows, plan.Row{Key: s.Key, Becomes: plan.Adopted})
	}
	k, err := f.kernel()
	for name := range k.Devices {
		p.Idle = append(p.Idle, name)
	}
	if k.Skip {
		p.Reload = &plan.Reload{Table: "a table"}
	}
	return p, err
}

func (f fake) lock(context.Context, *metadata.Store) error { return f.failure("lock") }
func (f fake) resume(Pool) error                           { return f.failure("resume") }

func (f fake) idle(names []string) (all []IdleDevice, err error) {
	k, err := f.kernel()
	for _, name := range names {
		if d, found := k.Devices[name]; found {
			all = append(all, d)
		}
	}
	return all, errors.Join(err, f.failure("idle"))
}

func (f fake) deactivate(devices []IdleDevice) error {
	if err := f.failure("deactivate"); err != nil {
		return err
	}
	return f.change(func(k *kernel) {
		for _, d := range devices {
			delete(k.Devices, d.Name)
		}
	})
}

func (f fake) activate(p Pool, devices []IdleDevice) (failed []string) {
	err := f.change(func(k *kernel) {
		for _, d := range devices {
			k.Devices[d.Name] = d
		}
	})
	if err != nil || p.MappedDevice != testPool {
		failed = append(failed, fmt.Sprint(p, err))
	}
	return failed
}

func (f fake) zero(context.Context, Pool) error {
	if err := f.failure("zero"); err != nil {
		return err
	}
	return f.change(func(k *kernel) { k.Skip = false })
}

func (f fake) withdraw(context.Context, *metadata.Store) error {
	if err := f.failure("withdraw"); err != nil {
		return err
	}
	return f.change(func(k *kernel) { k.Withdrawn++ })
}

func (f fake) close() error { return nil }

// run adopts, and returns what was reported.
func (s stand) run(t *testing.T) (steps []string) {
	t.Helper()
	_, err := run(t.Context(), s.options(), func(step string) { steps = append(steps, step) }, fake{stand: s})
	require.NoError(t, err)
	return steps
}

// undo goes back.
func (s stand) undo(t *testing.T) {
	t.Helper()
	require.NoError(t, undo(t.Context(), s.options().Config.Root, func(string) {}, fake{stand: s}))
}

// state is all that must be as before when an adoption was undone.
type state struct {
	files  map[string]string // content by name, those of the built-in
	modes  map[string]os.FileMode
	meta   string
	device map[string]IdleDevice
}

func (s stand) state(t *testing.T) state {
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
		st.files[e.Name()], st.modes[e.Name()] = string(b), info.Mode()
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

// dump returns all that a database has.
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

// requireAdopted holds that the adoption is complete: keys are those of the store.
func (s stand) requireAdopted(t *testing.T, keys ...string) {
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
	require.True(t, names.Empty(), names)
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

// requireBack holds that the built-in has everything as before, and thinsnap nothing.
func (s stand) requireBack(t *testing.T, before state) {
	t.Helper()
	require.Equal(t, before, s.state(t))
	root := s.options().Config.Root
	require.NoError(t, Unfinished(root))
	requireNames(t, root, "adopt")
	entries, err := os.ReadDir(rootdir.Adoption(root))
	require.NoError(t, err)
	for _, e := range entries {
		require.Contains(t, []string{backupName, storeName}, e.Name())
	}
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
