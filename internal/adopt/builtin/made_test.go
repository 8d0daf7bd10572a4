package builtin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

const (
	testPool = "vg0-thin"
	gib      = 1 << 30
)

// made has databases that containerd's code makes. Its methods make the transactions and state
// changes of containerd's Snapshotter and PoolDevice in their order, but change nothing in the kernel.
type made struct {
	t     testing.TB
	dir   string
	store *storage.MetaStore
	pool  *devmapper.PoolMetadata
}

func makeDatabases(t testing.TB) *made {
	t.Helper()
	m := &made{t: t, dir: t.TempDir()}
	m.open()
	t.Cleanup(m.close)
	return m
}

// furnishedFiles has the files of furnish. They are made once, because each transaction of
// containerd costs two syncs.
var furnishedFiles struct {
	once sync.Once
	all  map[string][]byte
}

// furnished returns a copy of the databases that furnish made.
func furnished(t testing.TB) *made {
	t.Helper()
	furnishedFiles.once.Do(func() {
		m := makeDatabases(t)
		furnish(m)
		m.close()
		furnishedFiles.all = map[string][]byte{metadataFile: m.bytes(metadataFile), testPool + ".db": m.bytes(testPool + ".db")}
	})
	m := &made{t: t, dir: t.TempDir()}
	for name, b := range furnishedFiles.all {
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, name), b, 0o600))
	}
	m.open()
	t.Cleanup(m.close)
	return m
}

func (m *made) open() {
	var err error
	m.store, err = storage.NewMetaStore(filepath.Join(m.dir, metadataFile))
	require.NoError(m.t, err)
	m.pool, err = devmapper.NewPoolMetadata(filepath.Join(m.dir, testPool+".db"))
	require.NoError(m.t, err)
	m.view(func(context.Context) error { return nil }) // creates the file
}

func (m *made) close() {
	require.NoError(m.t, m.store.Close())
	require.NoError(m.t, m.pool.Close())
}

func (m *made) view(fn storage.TransactionCallback) {
	m.t.Helper()
	require.NoError(m.t, m.store.WithTransaction(m.t.Context(), false, fn))
}

func (m *made) update(fn storage.TransactionCallback) {
	m.t.Helper()
	require.NoError(m.t, m.store.WithTransaction(m.t.Context(), true, fn))
}

// states changes the state of a device several times.
func (m *made) states(name string, all ...devmapper.DeviceState) error {
	for _, s := range all {
		if err := m.pool.ChangeDeviceState(m.t.Context(), name, s); err != nil {
			return err
		}
	}
	return nil
}

// create makes the changes of Snapshotter.createSnapshot and PoolDevice.CreateSnapshotDevice.
func (m *made) create(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) error {
	fs := labels[FilesystemLabel]
	if parent != "" {
		_, info, _, err := storage.GetInfo(ctx, parent)
		if err != nil {
			return err
		}
		fs = info.Labels[FilesystemLabel]
	}
	all := map[string]string{}
	for k, v := range labels {
		all[k] = v
	}
	if fs != "" {
		all[FilesystemLabel] = fs
	}
	snap, err := storage.CreateSnapshot(ctx, kind, key, parent, snapshots.WithLabels(all))
	if err != nil {
		return err
	}
	info := &devmapper.DeviceInfo{Name: testPool + "-snap-" + snap.ID, Size: 10 * gib, State: devmapper.Unknown}
	if parent != "" {
		info.ParentName = testPool + "-snap-" + snap.ParentIDs[0]
	}
	if err := m.pool.AddDevice(ctx, info); err != nil {
		return err
	}
	return m.states(info.Name, devmapper.Creating, devmapper.Created, devmapper.Activating, devmapper.Activated)
}

func (m *made) prepare(key, parent string, labels map[string]string) {
	m.t.Helper()
	m.update(func(ctx context.Context) error { return m.create(ctx, snapshots.KindActive, key, parent, labels) })
}

// commit makes the changes of Snapshotter.Commit.
func (m *made) commit(name, key string, bytes int64) {
	m.t.Helper()
	m.update(func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		labels := map[string]string{"containerd.io/snapshot.ref": name}
		if fs := info.Labels[FilesystemLabel]; fs != "" {
			labels[FilesystemLabel] = fs
		}
		id, err := storage.CommitActive(ctx, key, name, snapshots.Usage{Size: bytes}, snapshots.WithLabels(labels))
		if err != nil {
			return err
		}
		return m.states(testPool+"-snap-"+id, devmapper.Suspending, devmapper.Suspended, devmapper.Resuming, devmapper.Resumed,
			devmapper.Deactivating, devmapper.Deactivated)
	})
}

// remove makes the changes of Snapshotter.removeDevice and PoolDevice.RemoveDevice.
func (m *made) remove(key string, async bool) {
	m.t.Helper()
	m.update(func(ctx context.Context) error {
		id, _, err := storage.Remove(ctx, key)
		if err != nil {
			return err
		}
		name := testPool + "-snap-" + id
		if async {
			return m.states(name, devmapper.Removed)
		}
		return errors.Join(m.states(name, devmapper.Deactivated, devmapper.Removing, devmapper.Removed),
			m.pool.RemoveDevice(ctx, name))
	})
}

func (m *made) layer(name, parent string, bytes int64, labels map[string]string) {
	m.t.Helper()
	m.prepare("extract "+name, parent, labels)
	m.commit(name, "extract "+name, bytes)
}

func (m *made) id(key string) (uint64, string) {
	m.t.Helper()
	var id string
	m.view(func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	n, err := strconv.ParseUint(id, 10, 64)
	require.NoError(m.t, err)
	return n, testPool + "-snap-" + id
}

// read closes and reads the databases.
func (m *made) read() Databases {
	m.t.Helper()
	m.close()
	dbs, err := Read(m.t.Context(), m.dir, testPool)
	require.NoError(m.t, err)
	return dbs
}

// edit closes the databases, and changes one of them with bbolt.
func (m *made) edit(file string, fn func(tx *bolt.Tx) error) {
	m.t.Helper()
	m.close()
	db, err := bolt.Open(filepath.Join(m.dir, file), 0, &bolt.Options{NoSync: true})
	require.NoError(m.t, err)
	require.NoError(m.t, db.Update(fn))
	require.NoError(m.t, db.Close())
}

func (m *made) bytes(file string) []byte {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, file))
	require.NoError(m.t, err)
	return b
}

// furnish makes the snapshots of a node in use: two images that share layers in three namespaces,
// with ext4 and XFS; a container, a View and labels; and an image from before containerd 1.6.
func furnish(m *made) {
	m.t.Helper()
	parent := ""
	for i := range 5 {
		name := "k8s.io/" + strconv.Itoa(2*i+2) + "/sha256:" + strconv.Itoa(i)
		m.layer(name, parent, int64(i+1)<<20, map[string]string{FilesystemLabel: "ext4"})
		parent = name
	}
	m.prepare("k8s.io/20/container", parent, map[string]string{"app": "web", "containerd.io/gc.root": "now", "empty": ""})
	m.layer("default/21/sha256:5", "k8s.io/6/sha256:2", 9<<20, nil)
	m.update(func(ctx context.Context) error {
		return m.create(ctx, snapshots.KindView, "default/22/view", "default/21/sha256:5", nil)
	})
	m.layer("moby/23/sha256:x", "", 300<<20, map[string]string{FilesystemLabel: "xfs"})
	m.prepare("moby/24/\x00\xff", "moby/23/sha256:x", nil)
	m.layer("moby/25/old", "", 1<<20, nil)
}

func find(t testing.TB, dbs Databases, key string) (Snapshot, Device) {
	t.Helper()
	i := slices.IndexFunc(dbs.Snapshots, func(s Snapshot) bool { return s.Key == key })
	require.GreaterOrEqual(t, i, 0, key)
	d, _ := dbs.Device(dbs.Snapshots[i])
	return dbs.Snapshots[i], d
}
