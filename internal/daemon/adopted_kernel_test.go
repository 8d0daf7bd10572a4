package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// The volumes of the adopted snapshotter. Volume 5 is another user's.
const (
	oldLow thin.ID = iota + 1
	oldHigh
	oldBox
	oldLook // a View's own volume
	_
	oldXFS
	oldXFSBox
)

const oldBytes = 400 << 20 // more than the minimum of xfs

// adopted is a root with a store of adopted snapshots in a foreign pool.
type adopted struct {
	*handmade
	config config.Config
}

// newAdopted adopts the layers "low", "high" and "xfs", a container of "high" and of "xfs", and a
// View of "high".
func newAdopted(t *testing.T) *adopted {
	t.Helper()
	a := &adopted{handmade: newHandmade(t, ""), config: inPool(t, "by-hand")}
	a.config.Pool.SparesMax, a.config.Filesystem.MaxSize = 0, 1<<30
	a.makeOld(t)
	a.adopt(t)
	return a
}

// makeOld makes the volumes as containerd's devmapper does: by dmsetup, without UUIDs.
func (h *handmade) makeOld(t *testing.T) {
	t.Helper()
	require.NoError(t, h.pool().CreateThin(oldLow))
	h.writeOld(t, oldLow, "mkfs.ext4", "low", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
	require.NoError(t, h.pool().CreateSnap(oldHigh, oldLow))
	h.writeOld(t, oldHigh, "", "high")
	require.NoError(t, h.pool().CreateSnap(oldBox, oldHigh))
	h.writeOld(t, oldBox, "", "box")
	require.NoError(t, h.pool().CreateSnap(oldLook, oldHigh))
	require.NoError(t, h.pool().CreateThin(oldXFS))
	h.writeOld(t, oldXFS, "mkfs.xfs", "xfs", "-q")
	require.NoError(t, h.pool().CreateSnap(oldXFSBox, oldXFS))
	h.writeOld(t, oldXFSBox, "", "xfs box")
}

// writeOld makes a file system if mkfs is not empty, and writes a file into it.
func (h *handmade) writeOld(t *testing.T, id thin.ID, mkfs, name string, options ...string) {
	t.Helper()
	h.onOld(t, id, func(path string) {
		if mkfs != "" {
			run(t, append(append([]string{mkfs}, options...), path)...)
		}
		sb, err := filesystem.Identify(path)
		require.NoError(t, err)
		m := mount.Mount{Type: sb.Type, Source: path}
		if sb.Type == filesystem.XFS {
			m.Options = []string{"nouuid"}
		}
		require.NoError(t, mount.WithTempMount(t.Context(), []mount.Mount{m}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, name), content(name), 0o600)
		}))
	})
}

// onOld calls f with the node of a volume, which is active as containerd's devmapper activates it.
func (h *handmade) onOld(t *testing.T, id thin.ID, f func(path string)) {
	t.Helper()
	pool, err := h.control.Info(h.name)
	require.NoError(t, err)
	const name = "by-hand-snap-1"
	_, err = h.control.Activate(name, "", []devmapper.Target{thin.Target(pool.Number(), id, oldBytes/512)}, false)
	require.NoError(t, err)
	f(devmapper.NodePath(name))
	require.NoError(t, h.control.Deactivate(name))
}

func (a *adopted) adopt(t *testing.T) {
	t.Helper()
	witness := func(id thin.ID) (w metadata.AdoptedVolume) {
		a.onOld(t, id, func(path string) {
			sb, err := filesystem.Identify(path)
			require.NoError(t, err)
			w = metadata.AdoptedVolume{VolumeID: uint32(id), Filesystem: sb.Type, UUID: sb.UUID}
		})
		return w
	}
	snapshot := func(key, parent string, kind snapshots.Kind, id thin.ID, typ string) metadata.Snapshot {
		s := metadata.Snapshot{
			Key: key, Parent: parent, Kind: kind, VolumeID: uint32(id), Size: oldBytes, Filesystem: typ,
			Created: time.Now(), Updated: time.Now(),
		}
		if kind == snapshots.KindCommitted {
			s.Usage = metadata.Usage{Bytes: 1 << 20, Inodes: 12}
		}
		return s
	}
	require.NoError(t, rootdir.Prepare(a.config.Root))
	store, err := metadata.Open(rootdir.Store(a.config.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.Adopt(metadata.Adoption{
			Pool: metadata.PoolRecord{
				ID: "adopted", Mode: metadata.ModeExisting, Name: a.config.Pool.Name, BlockSize: uint64(a.blockSectors) * 512,
				Created: time.Now(), Complete: true,
				Existing: metadata.ExistingPool{
					MappedDevice: a.name, Adopted: []metadata.AdoptedVolume{witness(oldLow), witness(oldXFS)},
				},
			},
			Client: metadata.ClientRecord{Number: 1, Proxy: "thinsnap", Installation: "i"},
			Snapshots: []metadata.Snapshot{
				snapshot("low", "", snapshots.KindCommitted, oldLow, filesystem.Ext4),
				snapshot("high", "low", snapshots.KindCommitted, oldHigh, filesystem.Ext4),
				snapshot("box", "high", snapshots.KindActive, oldBox, filesystem.Ext4),
				snapshot("look", "high", snapshots.KindView, oldHigh, filesystem.Ext4),
				snapshot("xfs", "", snapshots.KindCommitted, oldXFS, filesystem.XFS),
				snapshot("xfs box", "xfs", snapshots.KindActive, oldXFSBox, filesystem.XFS),
			},
			Kept: []metadata.KeptRecord{{VolumeID: uint32(oldLook), Mapped: 1 << 20, Size: oldBytes, Found: time.Now()}},
		})
	}))
	require.NoError(t, store.Close())
}

// requireClean requires that a check has no findings.
func requireClean(t *testing.T, d *Daemon) {
	t.Helper()
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
}

// withStore calls f with the store of the root, which no daemon has open.
func (a *adopted) withStore(t *testing.T, f func(context.Context, *metadata.Store, *devmapper.Control) error) error {
	t.Helper()
	store, err := metadata.Open(rootdir.Store(a.config.Root), metadata.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	control, err := devmapper.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, control.Close()) }()
	return f(t.Context(), store, control)
}

// work creates layers and containers on the adopted layers, and removes them.
func (a *adopted) work(t *testing.T, d *Daemon) {
	t.Helper()
	ctx := t.Context()
	for _, parent := range []string{"high", "xfs"} {
		mounts, err := d.snapshotter.Prepare(ctx, "new", parent)
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "top"), content("top"), 0o600)
		}))
		require.NoError(t, d.snapshotter.Commit(ctx, "top", "new"))
		larger, err := d.snapshotter.Prepare(ctx, "larger", "top",
			snapshots.WithLabels(map[string]string{snapshotter.LabelSize: "500MiB"}))
		require.NoError(t, err)
		requireContent(t, larger, parent, "top")
		requireClean(t, d)
		require.NoError(t, d.snapshotter.Remove(ctx, "larger"))
		require.NoError(t, d.snapshotter.Remove(ctx, "top"))
	}
	require.NoError(t, d.snapshotter.Cleanup(ctx))
}

// requireUsed requires that each snapshot has a known usage. The View's own volume shares all
// blocks of "high".
func requireUsed(t *testing.T, d *Daemon) {
	t.Helper()
	all, err := d.Snapshots(t.Context(), true)
	require.NoError(t, err)
	require.Len(t, all, 6)
	for _, s := range all {
		if s.Kind == admin.KindView {
			continue
		}
		require.NotNil(t, s.Used, s.Key)
		require.NotNil(t, s.Exclusive, s.Key)
		require.Equal(t, s.Key != "high", *s.Exclusive > 0, s.Key)
		usage, err := d.snapshotter.Usage(t.Context(), s.Key)
		require.NoError(t, err)
		require.Positive(t, usage.Size, s.Key)
	}
}

// refusesAnother tries another pool with the same name, made by the same snapshotter.
func (a *adopted) refusesAnother(t *testing.T) {
	t.Helper()
	dir := a.dir
	defer func() { a.dir = dir }()
	a.dir = t.TempDir()
	a.up(t)
	defer a.down(t)
	a.makeOld(t)
	ids := a.ids(t)
	_, err := Open(t.Context(), a.config)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "has a file system with UUID")
	for _, f := range []func(context.Context, *metadata.Store, *devmapper.Control) error{
		provision.Prove, provision.Withdraw, provision.Destroy,
	} {
		err := a.withStore(t, f)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "has a file system with UUID")
	}
	require.Equal(t, ids, a.ids(t), "unchanged")
}

// TestAdoptedPool: adopted snapshots are used in place, provision.Withdraw deletes thinsnap's own
// volumes, and `pool destroy` removes the adopted volumes but no foreign one.
func TestAdoptedPool(t *testing.T) {
	a := newAdopted(t)
	ctx := t.Context()
	d, err := Open(ctx, a.config)
	require.NoError(t, err)
	requireClean(t, d)
	for key, files := range map[string][]string{
		"box": {"low", "high", "box"}, "xfs box": {"xfs", "xfs box"}, "look": {"low", "high"},
	} {
		mounts, err := d.snapshotter.Mounts(ctx, key)
		require.NoError(t, err)
		requireContent(t, mounts, files...)
	}
	requireUsed(t, d)
	for key, file := range map[string]string{"box": "/box", "xfs box": "/xfs box"} {
		difference, err := d.Diff(ctx, key)
		require.NoError(t, err)
		require.Contains(t, difference.Changes, admin.Change{Kind: admin.ChangeAdded, Path: file})
		inspection, err := d.Inspect(ctx, key)
		require.NoError(t, err)
		require.NotEmpty(t, inspection.Chain)
		require.NotNil(t, inspection.MappedBytes)
	}
	a.work(t, d)
	requireClean(t, d)
	require.NoError(t, d.Close())

	require.NoError(t, a.withStore(t, provision.Prove))
	require.NoError(t, a.withStore(t, provision.Withdraw))
	require.NoError(t, a.withStore(t, provision.Withdraw), "a second time")
	require.Equal(t, []thin.ID{oldLow, oldHigh, oldBox, oldLook, theirs, oldXFS, oldXFSBox}, a.ids(t), "as before")
	for _, id := range []thin.ID{oldXFSBox, oldLook} { // as with a store from a backup
		require.NoError(t, a.pool().Delete(id))
		err = a.withStore(t, provision.Withdraw)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, fmt.Sprintf("does not have the volumes [%d]", id))
		require.NoError(t, a.pool().CreateSnap(id, map[thin.ID]thin.ID{oldXFSBox: oldXFS, oldLook: oldHigh}[id]))
	}
	a.down(t)
	a.refusesAnother(t)
	a.up(t)

	d, err = Open(ctx, a.config)
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Commit(ctx, "boxed", "box"))
	for _, key := range []string{"look", "boxed", "high"} {
		require.NoError(t, d.snapshotter.Remove(ctx, key))
	}
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	requireClean(t, d)
	ids := a.ids(t)
	require.Equal(t, []thin.ID{oldLow, oldLook, theirs, oldXFS, oldXFSBox}, ids[:len(ids)-1])
	require.NoError(t, d.Close())
	destroy(t, a.config)
	a.requireTheirs(t, oldLook)
	require.NoFileExists(t, rootdir.Store(a.config.Root))
}
