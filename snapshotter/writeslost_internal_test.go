package snapshotter

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// storeWithVolume returns a store that has leased a device id.
func storeWithVolume(t *testing.T) (path string, store *metadata.Store, id thin.ID) {
	path = filepath.Join(t.TempDir(), "metadata.db")
	store, err := metadata.Open(path, metadata.Options{LockTimeout: time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		lease, err := tx.Lease(2)
		id = thin.ID(lease.First)
		return err
	}))
	return path, store, id
}

func createActive(tx *metadata.Tx, id thin.ID) error {
	return tx.Create(metadata.Snapshot{
		Key: "container", Kind: snapshots.KindActive, VolumeID: uint32(id), Size: 1 << 30, Filesystem: filesystem.Ext4,
	})
}

func requireStoredLost(t *testing.T, store *metadata.Store, expected ...thin.ID) {
	t.Helper()
	var ids []thin.ID
	require.NoError(t, store.View(t.Context(), func(tx *metadata.Tx) error {
		lost, err := tx.WritesLost()
		for _, id := range lost {
			ids = append(ids, thin.ID(id))
		}
		return err
	}))
	require.ElementsMatch(t, expected, ids)
}

// TestWritesLostBeforeTheRecord: the pool fails writes while Prepare stores the record.
func TestWritesLostBeforeTheRecord(t *testing.T) {
	_, store, id := storeWithVolume(t)
	s := &Snapshotter{store: store, volumes: newVolumes(nil)}
	s.volumes.noteCreated(id)
	s.volumes.noteWritesLost(id)
	require.NoError(t, s.storeWritesLost(t.Context()))
	requireStoredLost(t, store)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error { return createActive(tx, id) }))
	require.NoError(t, s.storeWritesLost(t.Context()))
	requireStoredLost(t, store, id)
}

// TestSpareTakenWhileItsMarkIsStored: a spare that was active in a full pool becomes a snapshot.
func TestSpareTakenWhileItsMarkIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, store, id := storeWithVolume(t)
		s := &Snapshotter{store: store, volumes: newVolumes(nil)}
		s.volumes.noteWritesLost(id)
		var marking error
		require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
			go func() { marking = s.storeWritesLost(t.Context()) }()
			synctest.Wait()
			s.volumes.noteCreated(id)
			return createActive(tx, id)
		}))
		synctest.Wait()
		require.NoError(t, marking)
		requireStoredLost(t, store)
		require.NoError(t, store.Close())
	})
}

// TestLostWritesWithAStoreThatCannotBeWritten: the mark of one snapshot does not make the Commits of
// others fail.
func TestLostWritesWithAStoreThatCannotBeWritten(t *testing.T) {
	path, store, id := storeWithVolume(t)
	require.NoError(t, store.Close())
	store, err := metadata.Open(path, metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer store.Close()
	p := fakepool.New(1 << 40)
	s := &Snapshotter{store: store, pool: p, volumes: newVolumes(p)}
	s.volumes.noteWritesLost(id)
	require.ErrorIs(t, s.requireNoWritesLost(t.Context(), id), metadata.ErrWritesLost)
	require.NoError(t, s.requireNoWritesLost(t.Context(), id+1))
}

// newStuckStore returns a snapshotter whose store does not answer until the end of the test.
func newStuckStore(t *testing.T) (*Snapshotter, *fakepool.Pool, thin.ID) {
	_, store, id := storeWithVolume(t)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: "fake", Mode: metadata.ModeLoop, Name: "fake", BlockSize: 64 << 10, TransactionID: 1, Complete: true,
		})
	}))
	p := fakepool.New(1 << 40)
	s, err := New(t.Context(), Config{Filesystem: filesystem.Ext4, BaseBytes: 64 << 20}, store, p, p)
	require.NoError(t, err)
	release := make(chan struct{})
	go store.Update(t.Context(), func(*metadata.Tx) error { <-release; return nil }) //nolint:errcheck // of no interest
	synctest.Wait()
	t.Cleanup(func() {
		close(release)
		s.Close()
	})
	return s, p, id
}

// TestCloseWithAMarkAndAStuckStore: the next start accepts the volume, but a stop must end.
func TestCloseWithAMarkAndAStuckStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, id := newStuckStore(t)
		s.volumes.noteWritesLost(id)
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		time.Sleep(time.Minute)
		select {
		case err := <-closed:
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
		default:
			require.Fail(t, "it has not ended")
		}
	})
}

// TestWatchWithAStuckStore: writes to the pool can fail while the store's disk does not answer.
func TestWatchWithAStuckStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p, id := newStuckStore(t)
		s.volumes.noteWritesLost(id)
		time.Sleep(time.Minute)
		require.NoError(t, p.CreateThin(t.Context(), id+1))
		_, err := p.Activate(t.Context(), id+1, 64<<20, false)
		require.NoError(t, err)
		p.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadOnly })
		time.Sleep(3 * time.Second)
		p.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadWrite })
		require.True(t, s.volumes.hasWritesLost(id+1))
	})
}

// TestWritesLostOfACommittedSnapshot: its volume gets no mark, and does not count as unstored.
func TestWritesLostOfACommittedSnapshot(t *testing.T) {
	_, store, id := storeWithVolume(t)
	s := &Snapshotter{store: store, volumes: newVolumes(nil)}
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		if err := createActive(tx, id); err != nil {
			return err
		}
		_, err := tx.Commit("layer", "container", metadata.CommitChange{Now: now()})
		return err
	}))
	s.volumes.noteWritesLost(id)
	require.NoError(t, s.storeWritesLost(t.Context()))
	require.Empty(t, s.volumes.unstoredWritesLost())
	requireStoredLost(t, store)
}
