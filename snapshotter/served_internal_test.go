package snapshotter

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
)

// serving is a snapshotter on a fake pool.
type serving struct {
	*Snapshotter
	pool *fakepool.Pool
}

func newServing(t *testing.T) serving {
	t.Helper()
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{LockTimeout: time.Second})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "fake", Mode: metadata.ModeLoop, Name: "fake", BlockSize: 64 << 10, Complete: true})
	}))
	p := fakepool.New(4 << 30)
	s, err := New(t.Context(), Config{Filesystem: filesystem.Ext4, BaseBytes: 64 << 20, Discard: true}, store, p, p)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.Empty(t, s.copies.volumes(), "a stop deletes them")
	})
	return serving{s, p}
}

// serve makes Mounts return a frozen copy of a new snapshot.
func (s serving) serve(t *testing.T, key string) (id thin.ID) {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), key, "")
	require.NoError(t, err)
	original, _ := s.volumeOfMount(mounts[0])
	return s.serveAgain(t, key, original)
}

func (s serving) serveAgain(t *testing.T, key string, original thin.ID) (id thin.ID) {
	t.Helper()
	rec, err := s.get(t.Context(), key)
	require.NoError(t, err)
	unlock, err := s.volumes.locks.lock(t.Context(), original)
	require.NoError(t, err)
	defer unlock()
	vol, err := s.pool.Lookup(t.Context(), original)
	require.NoError(t, err)
	mounts, err := s.serveCopy(t.Context(), rec, vol)
	require.NoError(t, err)
	require.Contains(t, mounts[0].Options, "ro")
	id, _ = s.volumeOfMount(mounts[0])
	found, err := s.FindMounted(t.Context(), mounts[0])
	require.NoError(t, err)
	require.Equal(t, key, found)
	return id
}

// TestServedCopyThatIsNotUsed: an unused copy is deleted after ten minutes.
func TestServedCopyThatIsNotUsed(t *testing.T) {
	s := newServing(t)
	start := time.Now()
	idle, used := s.serve(t, "idle"), s.serve(t, "used")
	require.NoError(t, s.pool.Open(s.pool.VolumePath(used), 1))
	exist := func(now time.Time, ids ...thin.ID) {
		t.Helper()
		s.dropUnused(t.Context(), now)
		require.NoError(t, s.Cleanup(t.Context()))
		want := make(map[thin.ID]bool)
		for _, id := range ids {
			want[id] = true
		}
		require.Equal(t, want, s.copies.volumes())
		require.Equal(t, len(ids), s.CountCopies())
	}
	exist(start.Add(servedIdle-time.Second), idle, used)
	exist(start.Add(servedIdle+time.Minute), used)
	require.NoError(t, s.pool.Open(s.pool.VolumePath(used), -1))
	exist(start.Add(2*servedIdle), used)
	exist(start.Add(2*servedIdle + time.Minute))
}

// TestServedCopyIsReplaced: a snapshot has one served copy, which is deleted with the snapshot. A copy that
// a client has mounted is deleted after the unmount.
func TestServedCopyIsReplaced(t *testing.T) {
	for _, end := range []func(s serving) error{
		func(s serving) error { return s.Remove(t.Context(), "vm") },
		func(s serving) error { return s.Commit(t.Context(), "layer", "vm") },
	} {
		s := newServing(t)
		first := s.serve(t, "vm")
		require.NoError(t, s.pool.Open(s.pool.VolumePath(first), 1))
		second := s.serveAgain(t, "vm", s.copies.original(first))
		third := s.serveAgain(t, "vm", s.copies.original(first))
		require.NoError(t, s.Cleanup(t.Context()))
		require.Equal(t, map[thin.ID]bool{first: true, third: true}, s.copies.volumes(), "and not %d", second)
		require.NoError(t, end(s))
		require.NoError(t, s.Cleanup(t.Context()))
		require.NoError(t, s.Cleanup(t.Context()))
		require.Equal(t, map[thin.ID]bool{first: true}, s.copies.volumes())
		require.NoError(t, s.pool.Open(s.pool.VolumePath(first), -1))
		require.NoError(t, s.Cleanup(t.Context()))
		require.Empty(t, s.copies.volumes())
	}
}

// TestServedCopiesMakeRoom: unopened copies are deleted, the least recently used first.
func TestServedCopiesMakeRoom(t *testing.T) {
	s := newServing(t)
	open := s.serve(t, "open")
	require.NoError(t, s.pool.Open(s.pool.VolumePath(open), 1))
	oldest := s.serve(t, "oldest")
	var all []*Frozen
	for len(s.copies.volumes()) < maxCopies {
		frozen, err := s.Freeze(t.Context(), "oldest")
		require.NoError(t, err)
		all = append(all, frozen)
	}
	newer := s.serve(t, "newer")
	require.False(t, s.copies.volumes()[oldest])
	require.Len(t, s.copies.volumes(), maxCopies)
	newest := s.serveAgain(t, "newer", s.copies.original(newer))
	require.False(t, s.copies.volumes()[newer])
	require.NoError(t, s.pool.Open(s.pool.VolumePath(newest), 1))
	_, err := s.Freeze(t.Context(), "newer")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	for _, frozen := range all {
		frozen.Release(t.Context())
	}
	require.Equal(t, map[thin.ID]bool{open: true, newest: true}, s.copies.volumes())
	for id := range s.copies.volumes() {
		require.NoError(t, s.pool.Open(s.pool.VolumePath(id), -1))
	}
}
