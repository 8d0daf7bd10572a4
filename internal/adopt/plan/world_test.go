package plan

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	mib   = 1 << 20
	block = 64 << 10
)

// world is an unfinished input. The mapped device of snapshot N is fc-snap-N, with volume 100+N.
type world struct {
	in    input
	names map[string]*metadb.Namespace
}

// newWorld has two images in three namespaces, containers, and a View.
func newWorld() *world {
	c := config.Default()
	c.Pool.Mode, c.Pool.Existing.Device = config.ModeExisting, "fc"
	w := &world{names: make(map[string]*metadb.Namespace)}
	w.in = input{
		options: Options{Config: c, ContainerdRoot: "/c", RootPath: "/r", Pool: "fc", From: "devmapper", Proxy: "thinsnap"},
		now:     time.Unix(1000, 0).UTC(), poolID: "POOL", installation: "UUID", volumes: make(map[string]volume),
		databases: builtin.Databases{Pool: "fc", IDs: make(map[uint32]builtin.IDState)},
		pool: poolInput{
			name: "fc", blockBytes: block, sectors: 1 << 20,
			table:  thin.PoolTable{Metadata: "7:0", Data: "7:1", BlockSectors: block / 512},
			status: thin.PoolStatus{Mode: thin.ModeReadWrite},
		},
	}
	w.add(snapshots.KindCommitted, "k8s.io/1/a", "", "ext4")
	w.add(snapshots.KindCommitted, "k8s.io/2/b", "k8s.io/1/a", "ext4")
	w.add(snapshots.KindActive, "k8s.io/3/box", "k8s.io/2/b", "ext4")
	w.add(snapshots.KindCommitted, "default/4/a", "", "ext4")
	w.add(snapshots.KindView, "default/5/look", "default/4/a", "ext4")
	w.add(snapshots.KindActive, "default/6/alone", "", "ext4")
	w.add(snapshots.KindCommitted, "moby/7/x", "", "xfs")
	w.add(snapshots.KindActive, "moby/8/box", "moby/7/x", "xfs")
	return w
}

// add adds a snapshot with a name, a device and a volume.
func (w *world) add(kind snapshots.Kind, key, parent, fs string) {
	id := uint64(len(w.in.databases.Snapshots) + 1)
	s := builtin.Snapshot{
		Key: key, ID: id, Kind: kind, Parent: parent, Created: time.Unix(int64(id), 0).UTC(),
		Updated: time.Unix(int64(id)+1, 0).UTC(), Labels: map[string]string{builtin.FilesystemLabel: fs},
	}
	if kind == snapshots.KindActive {
		s.Labels["app"] = key
	}
	d := builtin.Device{Name: fmt.Sprintf("fc-snap-%d", id), ID: uint32(100 + id), Bytes: 10*mib + 100, State: builtin.StateActivated}
	v := volume{
		exists: true, whole: true, mapped: 10 + id, end: 160, created: uint32(id), last: uint32(id),
		superblock: filesystem.Superblock{Type: fs, UUID: fmt.Sprintf("uuid-%d", id), Bytes: 10 * mib, BlockBytes: 4096, Inodes: 11},
	}
	if parent != "" {
		p := w.snapshot(parent)
		d.Parent = fmt.Sprintf("fc-snap-%d", p.ID)
		v.descent = &thinmeta.Descent{Shared: true, Own: 1, Newest: v.created, Oldest: v.created}
		v.superblock.UUID = w.in.volumes[d.Parent].superblock.UUID
	}
	w.in.databases.Snapshots = append(w.in.databases.Snapshots, s)
	w.in.databases.Devices = append(w.in.databases.Devices, d)
	w.in.databases.IDs[d.ID] = builtin.Taken
	w.in.volumes[d.Name] = v
	w.name(key, parent)
}

// name makes containerd name a snapshot after the last part of its key.
func (w *world) name(key, parent string) {
	last := func(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }
	ns := strings.SplitN(key, "/", 2)[0]
	if w.names[ns] == nil {
		w.names[ns] = &metadb.Namespace{Name: ns, Bucket: true}
	}
	w.names[ns].Snapshots = append(w.names[ns].Snapshots, metadb.Snapshot{Key: last(key), Backend: key, Parent: last(parent)})
}

func (w *world) snapshot(key string) *builtin.Snapshot {
	i := slices.IndexFunc(w.in.databases.Snapshots, func(s builtin.Snapshot) bool { return s.Key == key })
	return &w.in.databases.Snapshots[i]
}

func (w *world) device(key string) *builtin.Device {
	name := fmt.Sprintf("fc-snap-%d", w.snapshot(key).ID)
	i := slices.IndexFunc(w.in.databases.Devices, func(d builtin.Device) bool { return d.Name == name })
	return &w.in.databases.Devices[i]
}

func (w *world) volume(key string, change func(v *volume)) {
	name := w.device(key).Name
	v := w.in.volumes[name]
	change(&v)
	w.in.volumes[name] = v
}

func (w *world) forget(key string) {
	for _, ns := range w.names {
		ns.Snapshots = slices.DeleteFunc(ns.Snapshots, func(s metadb.Snapshot) bool { return s.Backend == key })
	}
}

// lose removes a snapshot, but not its device.
func (w *world) lose(key string) {
	w.in.databases.Snapshots = slices.DeleteFunc(w.in.databases.Snapshots, func(s builtin.Snapshot) bool { return s.Key == key })
}

func (w *world) containerds(key string) *metadb.Snapshot {
	for _, ns := range w.names {
		for i := range ns.Snapshots {
			if ns.Snapshots[i].Backend == key {
				return &ns.Snapshots[i]
			}
		}
	}
	panic(key)
}

// sort sorts the records like the readers of the databases.
func (w *world) sort() {
	in := &w.in
	slices.SortFunc(in.databases.Snapshots, func(a, b builtin.Snapshot) int { return strings.Compare(a.Key, b.Key) })
	slices.SortFunc(in.databases.Devices, func(a, b builtin.Device) int { return strings.Compare(a.Name, b.Name) })
	in.names = metadb.Names{Snapshotter: in.options.From, Version: 4}
	for _, ns := range []string{"default", "k8s.io", "moby"} {
		if w.names[ns] != nil {
			space := *w.names[ns]
			slices.SortFunc(space.Snapshots, func(a, b metadb.Snapshot) int { return strings.Compare(a.Key, b.Key) })
			in.names.Namespaces = append(in.names.Namespaces, space)
		}
	}
}

func (w *world) judge() Plan {
	w.sort()
	return judge(w.in)
}

func row(t *testing.T, p Plan, key string) Row {
	t.Helper()
	i := slices.IndexFunc(p.Rows, func(r Row) bool { return r.Key == key })
	require.GreaterOrEqual(t, i, 0, "no row of %q", key)
	return p.Rows[i]
}

// fates returns the fates of all rows, by key or device.
func fates(p Plan) map[string]Fate {
	all := make(map[string]Fate)
	for _, r := range p.Rows {
		name := r.Key
		if r.Kind == KindDevice {
			name = r.Device
		}
		all[name] = r.Becomes
	}
	return all
}

// adoptable fails the test unless a store accepts the adoption, and all descendants of a name that
// is left out are left out too.
type adoptable struct{ store *metadata.Store }

func newAdoptable(t testing.TB) adoptable {
	t.Helper()
	store, err := metadata.Open(filepath.Join(t.TempDir(), "store"), metadata.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return adoptable{store}
}

func (a adoptable) require(t testing.TB, p Plan) {
	t.Helper()
	errRollback := errors.New("roll back")
	err := a.store.Update(t.Context(), func(tx *metadata.Tx) error {
		if err := tx.Adopt(p.Adoption); err != nil {
			return err
		}
		return errRollback
	})
	require.ErrorIs(t, err, errRollback)
	adopted := make(map[string]bool)
	for _, s := range p.Adoption.Snapshots {
		adopted[s.Key] = true
	}
	for _, ns := range p.Names.Namespaces {
		for _, s := range ns.Snapshots {
			left := p.LeaveOut[ns.Name][s.Key]
			require.NotEqual(t, left, adopted[s.Backend], "%q is adopted, or left out", s.Key)
			if p.LeaveOut[ns.Name][s.Parent] {
				require.True(t, left, "%q descends from %q", s.Key, s.Parent)
			}
		}
	}
	for _, r := range p.Rows {
		require.Equal(t, r.Problem == "", r.Remedy == "", "%+v", r)
		switch r.Becomes {
		case LeftOut, Foreign:
			require.NotEmpty(t, r.Problem, "%+v", r)
		case Adopted, AdoptedView:
			require.Empty(t, r.Problem, "%+v", r)
		case Kept, Dropped:
		default:
			require.Fail(t, "no fate", "%+v", r)
		}
	}
}
