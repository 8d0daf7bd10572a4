package metadata

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// noon is the time of all records in these tests.
var noon = time.Date(2026, 2, 3, 12, 0, 0, 123456789, time.UTC)

// newStore opens an empty store, and checks at the end of the test that it has no problems.
func newStore(t testing.TB, o Options) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "metadata.db"), o)
}

// newStoreFrom opens an empty store whose first lease begins with the id first.
func newStoreFrom(t testing.TB, first uint32) *Store {
	t.Helper()
	s := newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.put(tx.buckets.meta, keyNext, encodeDevice(first)))
	})
	return s
}

func openStore(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if problems, err := s.Check(context.Background()); !errors.Is(err, ErrClosed) {
			require.NoError(t, err)
			require.Empty(t, problems)
		}
		require.NoError(t, s.Close())
	})
	return s
}

func update(t testing.TB, s *Store, fn func(*Tx)) {
	t.Helper()
	require.NoError(t, s.Update(t.Context(), func(tx *Tx) error {
		fn(tx)
		return nil
	}))
}

func view(t testing.TB, s *Store, fn func(*Tx)) {
	t.Helper()
	require.NoError(t, s.View(t.Context(), func(tx *Tx) error {
		fn(tx)
		return nil
	}))
}

func active(key, parent string, device uint32) Snapshot {
	return Snapshot{
		Key: key, Parent: parent, Kind: snapshots.KindActive, VolumeID: device,
		Size: 10 << 30, Filesystem: "ext4", Created: noon, Updated: noon,
	}
}

func viewOf(key, parent string, device uint32) Snapshot {
	s := active(key, parent, device)
	s.Kind = snapshots.KindView
	return s
}

func ext4Base(device uint32) BaseRecord {
	return BaseRecord{Filesystem: "ext4", Size: 10 << 30, VolumeID: device, UUID: "u", MkfsOptions: []string{"-m", "0"}, Created: noon}
}

// furnished returns a store with ids 1 to 64 leased and these volumes, with their parents:
//   - 1, the base volume
//   - 2, committed as "low"
//   - 3, committed as "high" on "low", with a view "look"
//   - 4, active as "work" on "high"
//   - 5, active as "alone", without a parent
func furnished(t testing.TB) *Store {
	t.Helper()
	s := newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(64)
		require.NoError(t, err)
		require.NoError(t, tx.SetBase(ext4Base(1)))
		require.NoError(t, tx.Create(active("low-key", "", 2)))
		_, err = tx.Commit("low", "low-key", CommitChange{Now: noon, Usage: Usage{Bytes: 4096, Inodes: 3}})
		require.NoError(t, err)
		require.NoError(t, tx.Create(active("high-key", "low", 3)))
		_, err = tx.Commit("high", "high-key", CommitChange{Now: noon})
		require.NoError(t, err)
		require.NoError(t, tx.Create(active("work", "high", 4)))
		require.NoError(t, tx.Create(viewOf("look", "high", 3)))
		require.NoError(t, tx.Create(active("alone", "", 5)))
	})
	return s
}

func TestUpdateAloneIsOneTransaction(t *testing.T) {
	s := furnished(t)
	before := s.Stats()
	update(t, s, func(tx *Tx) {
		_, err := tx.Commit("done", "work", CommitChange{Now: noon, VolumeID: 6})
		require.NoError(t, err)
		_, err = tx.Remove("alone", noon)
		require.NoError(t, err)
	})
	after := s.Stats()
	require.Equal(t, before.Operations+1, after.Operations)
	require.Equal(t, before.Transactions+1, after.Transactions)
	require.Equal(t, before.Reads, after.Reads)
	require.Greater(t, after.CommitTime, before.CommitTime)
	require.Positive(t, after.FileBytes)
}

func TestUpdateThatWritesNothingIsNoTransaction(t *testing.T) {
	s := furnished(t)
	before := s.Stats().Transactions
	update(t, s, func(tx *Tx) { require.True(t, tx.Exists("work")) })
	err := s.Update(t.Context(), func(tx *Tx) error { return tx.Create(active("work", "", 7)) })
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.Equal(t, before, s.Stats().Transactions)
}

func TestFailedUpdateLeavesNothing(t *testing.T) {
	s := furnished(t)
	before := s.Stats().Transactions
	broken := errors.New("changed my mind")
	err := s.Update(t.Context(), func(tx *Tx) error {
		require.NoError(t, tx.Create(active("new", "high", 7)))
		return broken
	})
	require.ErrorIs(t, err, broken)
	require.Equal(t, before, s.Stats().Transactions)
	view(t, s, func(tx *Tx) {
		require.False(t, tx.Exists("new"))
		_, owned := tx.Owner(7)
		require.False(t, owned)
	})
}

func TestViewCannotWrite(t *testing.T) {
	s := furnished(t)
	err := s.View(t.Context(), func(tx *Tx) error { return tx.Create(active("new", "high", 7)) })
	require.Error(t, err)
	require.NoError(t, s.View(t.Context(), func(tx *Tx) error {
		require.False(t, tx.Exists("new"))
		return nil
	}))
}

func TestViewReturnsItsError(t *testing.T) {
	s := furnished(t)
	broken := errors.New("seen enough")
	require.ErrorIs(t, s.View(t.Context(), func(*Tx) error { return broken }), broken)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.View(ctx, func(*Tx) error { panic("ran") }), context.Canceled)
}

func TestClose(t *testing.T) {
	s := newStore(t, Options{})
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Update(t.Context(), func(*Tx) error { panic("ran") }), ErrClosed)
	require.ErrorIs(t, s.View(t.Context(), func(*Tx) error { panic("ran") }), ErrClosed)
	_, err := s.Check(t.Context())
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}
