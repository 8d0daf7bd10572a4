package adopt

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// These tests have a user, containerd or the built-in make changes between two calls.

var errKilled = errors.New("killed")

// kill ends a run in the middle, with the journal, before or after the built-in is blocked.
func (s fixture) kill(t *testing.T, blocked bool) {
	t.Helper()
	f, stop := fake{fixture: s}, func() { panic(errKilled) }
	if blocked {
		f.onDeactivate = stop
	} else {
		f.onZero = stop
	}
	require.PanicsWithValue(t, errKilled, func() { _, _ = run(t.Context(), s.options(), func(string) {}, f) })
}

// TestTwoRoots: after a killed run, the user adopts in another root. The first adoption must then
// neither complete, which would give two stores one volume, nor give the other root's volumes to
// the built-in.
func TestTwoRoots(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	before := s.state(t)
	s.kill(t, false)
	other := s.options()
	other.Config.Root += "2"
	_, err := run(t.Context(), other, func(string) {}, fake{fixture: s})
	require.NoError(t, err)
	adopted := s.state(t)
	for _, err := range []error{s.tryUndo(t, fake{fixture: s}), func() error { _, err := s.tryRun(t); return err }()} {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "another root")
		require.ErrorContains(t, err, s.adopt(""))
		require.Equal(t, adopted, s.state(t))
	}
	require.NoError(t, undo(t.Context(), other.Config.Root, func(string) {}, fake{fixture: s}))
	require.Equal(t, before, s.state(t))
	s.undo(t)
	s.requireBack(t, before)
}

// TestDatabaseIsMovedBack: a user moves the built-in's database back, so that the built-in can
// start. Undo must still be possible.
func TestDatabaseIsMovedBack(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	before := s.state(t)
	s.run(t)
	require.NoError(t, os.Rename(s.adopt(closedName), s.adopt(openName)))
	s.setPhase(t, Forward)
	pool := newRecord(s.options()).poolPath()
	require.NoError(t, os.Rename(pool+savedSuffix, pool))
	_, err := s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "--undo")
	before.device = map[string]IdleDevice{} // the built-in activates its devices
	s.undo(t)
	s.requireBack(t, before)

	s.run(t)
	require.NoError(t, os.Remove(pool)) // the text only
	s.undo(t)
	s.requireBack(t, before)
}

// TestBuiltinRunsBeforeUndoEnds: the built-in works after an undo that is killed near its end, and
// may have removed the volumes that identify the pool.
func TestBuiltinRunsBeforeUndoEnds(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	before := s.state(t)
	s.run(t)
	a, err := begin(s.options().Config.Root, func(string) {}, fake{fixture: s})
	require.NoError(t, err)
	require.NoError(t, a.withdrawStore(t.Context()))
	require.NoError(t, a.restoreNames(t.Context(), Adopted))
	require.NoError(t, a.giveBack())
	require.NoError(t, a.end())
	require.NoError(t, s.tryUndo(t, fake{fixture: s, fail: "withdraw"}))
	s.requireBack(t, before)
}

// TestUndoWithAnOlderStore: the store is a backup without the newest snapshots, which containerd
// names. An undo would leave the built-in names without snapshots.
func TestUndoWithAnOlderStore(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	before := s.state(t)
	s.run(t)
	s.meta(t, func(v1 *bolt.Bucket) { name(t, v1, testProxy, "new", "default/9/new", "b") })
	adopted := s.state(t)
	err := s.tryUndo(t, fake{fixture: s})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, `"new" in namespace "default"`)
	require.Equal(t, adopted, s.state(t))
	require.NoError(t, Unfinished(s.options().Config.Root))
	_, err = os.Stat(rootdir.Store(s.options().Config.Root))
	require.NoError(t, err)
	s.meta(t, func(v1 *bolt.Bucket) {
		of := v1.Bucket([]byte("default")).Bucket([]byte("snapshots")).Bucket([]byte(testProxy))
		require.NoError(t, of.DeleteBucket([]byte("new")))
		require.NoError(t, of.Bucket([]byte("b")).Bucket([]byte("children")).Delete([]byte("new")))
		require.NoError(t, of.SetSequence(of.Sequence()-2))
	})
	s.undo(t)
	s.requireBack(t, before)
}

// TestUndoAfterAViewIsGone: containerd's collector removes a View when its lease ends. The built-in
// still has its volume of the View.
func TestUndoAfterAViewIsGone(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	s.builtin(t, func(ctx context.Context, pool *devmapper.PoolMetadata) error {
		snap, err := storage.CreateSnapshot(ctx, snapshots.KindView, "default/7/look", "default/4/b")
		if err != nil {
			return err
		}
		return pool.AddDevice(ctx, &devmapper.DeviceInfo{
			Name: testPool + "-snap-" + snap.ID, ParentName: testPool + "-snap-2", Size: 1 << 26, State: devmapper.Activated,
		})
	})
	s.meta(t, func(v1 *bolt.Bucket) { name(t, v1, "devmapper", "look", "default/7/look", "b") })
	s.run(t)
	s.requireAdopted(t, append([]string{"default/7/look"}, all...)...)
	store, err := metadata.Open(rootdir.Store(s.options().Config.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		_, err := tx.Remove("default/7/look", now())
		return err
	}))
	require.NoError(t, store.Close())
	s.meta(t, func(v1 *bolt.Bucket) {
		of := v1.Bucket([]byte("default")).Bucket([]byte("snapshots")).Bucket([]byte(testProxy))
		require.NoError(t, of.DeleteBucket([]byte("look")))
		require.NoError(t, of.Bucket([]byte("b")).Bucket([]byte("children")).Delete([]byte("look")))
	})
	s.undo(t)
	require.NotContains(t, s.state(t).meta, "look")
	require.NotContains(t, s.state(t).meta, testProxy)
}

// TestUndoWithoutDatabases: the built-in's databases were removed. It would start with empty ones,
// and allocate ids that are in use.
func TestUndoWithoutDatabases(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"of the snapshots", "of the pool"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t)
			before := s.state(t)
			s.run(t)
			path := newRecord(s.options()).snapshotsPath()
			if name == "of the pool" {
				path = newRecord(s.options()).poolPath()
			}
			require.NoError(t, os.Rename(path, path+".text"))
			require.NoError(t, os.Rename(path+savedSuffix, path+".away"))
			err := s.tryUndo(t, fake{fixture: s})
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, "adopt/backup")
			require.NoError(t, Unfinished(s.options().Config.Root), "nothing was changed")
			require.NoError(t, os.Rename(path+".text", path))
			require.NoError(t, os.Rename(path+".away", path+savedSuffix))
			s.undo(t)
			s.requireBack(t, before)
		})
	}
}
