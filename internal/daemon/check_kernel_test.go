package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// newDaemon opens a new root, and destroys it at the end of the test.
func newDaemon(t *testing.T) (*Daemon, config.Config) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Pool.Name = "check-" + filepath.Base(filepath.Dir(filepath.Dir(c.Root)))
	c.Pool.Loop.DataSize, c.Pool.Loop.MetadataSize = 2<<30, 16<<20
	c.Filesystem.BaseSize = 64 << 20
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { destroy(t, c) })
	return d, c
}

// destroy checks the layers of a closed root, if its pool is loaded, and removes the pool.
func destroy(t *testing.T, c config.Config) {
	t.Helper()
	ctx := context.Background()
	if err := fsck.Root(ctx, c.Root); !errors.Is(err, devmapper.ErrNotFound) {
		assert.NoError(t, err)
	}
	require.NoError(t, DestroyPool(ctx, c))
}

// layers commits a chain of layers with a file in each, and returns their volumes.
func layers(t *testing.T, d *Daemon, names ...string) []thin.ID {
	t.Helper()
	var ids []thin.ID
	parent := ""
	for _, name := range names {
		mounts, err := d.snapshotter.Prepare(t.Context(), "new "+name, parent)
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600)
		}))
		require.NoError(t, d.snapshotter.Commit(t.Context(), name, "new "+name))
		ids = append(ids, deviceOf(t, d, name))
		parent = name
	}
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
	return ids
}

func deviceOf(t *testing.T, d *Daemon, key string) thin.ID {
	t.Helper()
	var rec metadata.Snapshot
	require.NoError(t, d.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	}))
	return thin.ID(rec.VolumeID)
}

// findings checks the running daemon, and returns the kinds of the findings by volume.
func findings(t *testing.T, d *Daemon, repair bool) (kinds map[thin.ID]check.Kind, r check.Report) {
	t.Helper()
	r, err := d.Check(t.Context(), repair)
	require.NoError(t, err)
	kinds = make(map[thin.ID]check.Kind)
	for _, f := range r.Findings {
		t.Log(f.Subject, f.Text)
		kinds[thin.ID(f.DeviceID)] = f.Kind
	}
	require.Len(t, kinds, len(r.Findings))
	return kinds, r
}

func TestCheckOfARunningDaemon(t *testing.T) {
	d, _ := newDaemon(t)
	defer func() { require.NoError(t, d.Close()) }()
	ids := layers(t, d, "one", "two")
	other := layers(t, d, "other")
	_, err := d.snapshotter.Prepare(t.Context(), "box", "two")
	require.NoError(t, err)
	_, err = d.snapshotter.View(t.Context(), "look", "two")
	require.NoError(t, err)
	// A Commit of a mounted snapshot copies its volume: the blocks are older than the copy.
	mounts, err := d.snapshotter.Prepare(t.Context(), "busy", "two")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "busy"), make([]byte, 1<<20), 0o600); err != nil {
			return err
		}
		return d.snapshotter.Commit(t.Context(), "copy", "busy")
	}))
	kinds, r := findings(t, d, false)
	require.Empty(t, kinds)
	require.Equal(t, 6, r.Examined.Snapshots)
	require.Greater(t, r.Examined.Mappings, 16)

	// Findings that a repair removes.
	box := deviceOf(t, d, "box")
	require.NoError(t, d.pool.Suspend(t.Context(), box))
	require.NoError(t, os.MkdirAll(filepath.Join(rootdir.Mounts(d.config.Root), "7777"), 0o700))
	backing, err := d.pool.Backing()
	require.NoError(t, err)
	loop, err := blockdev.LoopAttach(backing.DataFile, blockdev.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	kinds, _ = findings(t, d, false)
	require.Equal(t, map[thin.ID]check.Kind{box: check.KindDevice, 7777: check.KindMount, 0: check.KindLoop}, kinds)
	kinds, r = findings(t, d, true)
	require.Len(t, r.Repaired, 2, "the loop device goes with its last user")
	require.Equal(t, map[thin.ID]check.Kind{0: check.KindLoop}, kinds)
	require.NoError(t, loop.Close())
	require.NoDirExists(t, filepath.Join(rootdir.Mounts(d.config.Root), "7777"))
	vol, err := d.pool.Lookup(t.Context(), box)
	require.NoError(t, err)
	require.False(t, vol.Suspended)

	// A leftover metadata snapshot.
	require.NoError(t, thin.NewPool(d.control, d.pool.Name()).ReserveMetadataSnap())
	kinds, _ = findings(t, d, false)
	require.Equal(t, map[thin.ID]check.Kind{0: check.KindMetadataSnapshot}, kinds)
	kinds, _ = findings(t, d, true)
	require.Empty(t, kinds)

	// Findings that no repair removes: a lost layer, a layer in place of another, and foreign
	// volumes.
	require.NoError(t, d.snapshotter.Remove(t.Context(), "look"))
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
	require.NoError(t, d.pool.Delete(t.Context(), other[0]))
	require.NoError(t, d.pool.Delete(t.Context(), ids[1]))
	require.NoError(t, d.pool.CreateThin(t.Context(), ids[1]))
	require.NoError(t, d.pool.CreateThin(t.Context(), 5000))
	kinds, r = findings(t, d, true)
	require.Equal(t, check.KindMissing, kinds[other[0]])
	require.Equal(t, check.KindParent, kinds[box], "the box has blocks that its parent no longer has")
	require.Equal(t, check.KindUnowned, kinds[5000])
	require.Empty(t, r.Repaired)
	require.NoError(t, d.pool.Delete(t.Context(), 5000))
	for _, damaged := range []string{"box", "copy", "two", "other"} {
		require.NoError(t, d.snapshotter.Remove(t.Context(), damaged))
	}
}

func TestCheckOfAStoppedRoot(t *testing.T) {
	d, c := newDaemon(t)
	ids := layers(t, d, "one")
	lease := leaseOf(t, d)
	name := d.pool.VolumeName(ids[0])
	backing, err := d.pool.Backing()
	require.NoError(t, err)
	require.NoError(t, d.Close())

	for _, reboot := range []bool{false, true} {
		r, err := CheckRoot(t.Context(), c, false)
		require.NoError(t, err)
		require.Empty(t, r.Findings)
		require.Equal(t, 2, r.Examined.Volumes, "the layer and the base volume; reboot: %v", reboot)
		if !reboot {
			takeDown(t, d, backing)
		}
	}

	// The state after a crash during an operation.
	d, err = Open(t.Context(), c)
	require.NoError(t, err)
	_, err = CheckRoot(t.Context(), c, false)
	require.ErrorIs(t, err, metadata.ErrLocked)
	require.NoError(t, d.pool.CreateSnap(t.Context(), thin.ID(lease.Last), ids[0]))
	_, err = d.pool.Activate(t.Context(), ids[0], 64<<20, false)
	require.NoError(t, err)
	require.NoError(t, thin.NewPool(d.control, d.pool.Name()).ReserveMetadataSnap())
	require.NoError(t, d.stopExtender())
	require.NoError(t, d.snapshotter.Close())
	_, err = d.control.Create("half", d.pool.UUID()[:len(d.pool.UUID())-len("pool")]+"88")
	require.NoError(t, err)
	require.NoError(t, d.control.Close())
	before, err := CheckRoot(t.Context(), c, false)
	require.NoError(t, err)
	require.Empty(t, before.Findings)
	require.Len(t, before.Pending, 3, "the metadata snapshot, and the two devices")
	after, err := CheckRoot(t.Context(), c, true)
	require.NoError(t, err)
	require.Empty(t, after.Findings)
	require.Len(t, after.Repaired, 2)
	require.Equal(t, 2, after.Examined.Volumes)

	control, err := devmapper.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, control.Close()) }()
	_, err = control.Info(name)
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	_, err = control.Remove("half", devmapper.RemoveOptions{})
	require.NoError(t, err)

	_, err = CheckRoot(t.Context(), config.Config{Root: t.TempDir()}, false)
	require.ErrorContains(t, err, "no thinsnap data in")
}

// takeDown removes the pool of a closed daemon from the kernel, as a reboot does.
func takeDown(t *testing.T, d *Daemon, backing pool.Backing) {
	t.Helper()
	control, err := devmapper.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, control.Close()) }()
	p, err := pool.LoopSpec{
		ID: d.pool.UUID()[len("THINSNAP-") : len(d.pool.UUID())-len("-pool")], Name: d.pool.Name(), BlockBytes: 64 << 10,
		DataFile: backing.DataFile, MetadataFile: backing.MetadataFile,
	}.OpenLoaded(control)
	require.NoError(t, err)
	require.NoError(t, p.Close(t.Context()))
}

// leaseOf returns an open lease, whose last id is unused.
func leaseOf(t *testing.T, d *Daemon) (last metadata.LeaseRecord) {
	t.Helper()
	require.NoError(t, d.store.View(t.Context(), func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		last = leases[len(leases)-1]
		return err
	}))
	return last
}
