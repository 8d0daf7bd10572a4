package metadata

import (
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestKept(t *testing.T) {
	s := newStore(t, Options{})
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	kept := []KeptRecord{{VolumeID: 2, Mapped: 1 << 20, Size: 1 << 30, Found: now}, {VolumeID: 1 << 23, Mapped: 1, Size: 1, Found: now}}
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(4)
		require.NoError(t, err)
		all, err := tx.Kept()
		require.NoError(t, err)
		require.Empty(t, all)
		require.NoError(t, tx.Keep(kept[0]))
		require.ErrorIs(t, tx.Keep(kept[0]), errdefs.ErrFailedPrecondition)
		require.NoError(t, tx.CloseLease(1))
	})
	view(t, s, func(tx *Tx) {
		all, err := tx.Kept()
		require.NoError(t, err)
		require.Equal(t, kept[:1], all)
		require.Equal(t, 1, tx.KeptCount())
		state, err := tx.VolumeState(2)
		require.NoError(t, err)
		require.Equal(t, VolumeKept, state)
		require.ErrorIs(t, tx.requireClaimable(2), errdefs.ErrFailedPrecondition)
	})
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
	update(t, s, func(tx *Tx) {
		require.ErrorIs(t, tx.DiscardKept(3, now), errdefs.ErrNotFound)
		require.NoError(t, tx.DiscardKept(2, now))
		require.ErrorIs(t, tx.DiscardKept(2, now), errdefs.ErrNotFound)
		require.Zero(t, tx.KeptCount())
		trash, err := tx.Trash()
		require.NoError(t, err)
		require.Equal(t, []TrashRecord{{VolumeID: 2, Size: 1 << 30, Since: now}}, trash)
	})
	problems, err = s.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.Keep(kept[1]))
		require.NoError(t, tx.put(tx.buckets.meta, keptKey(1<<23), []byte{recordVersion}))
		_, err := tx.Kept()
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
	})
	problems, err = s.Check(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, problems)
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.delete(tx.buckets.devices, encodeDevice(1<<23)))
		require.NoError(t, tx.delete(tx.buckets.meta, keptKey(1<<23)))
	})
}

// The record that owns an id of such a lease, and each Commit, raises the transaction id.
func TestLeaseWritten(t *testing.T) {
	for _, mode := range []string{ModeLoop, ModeExisting} {
		s := newStore(t, Options{})
		var transaction uint64
		id := func(tx *Tx) uint64 {
			pool, err := tx.Pool()
			require.NoError(t, err)
			return pool.TransactionID
		}
		now := time.Now()
		create := func(tx *Tx, key string, volume uint32) {
			require.NoError(t, tx.Create(Snapshot{Key: key, Kind: snapshots.KindActive, VolumeID: volume, Filesystem: "ext4", Created: now}))
		}
		update(t, s, func(tx *Tx) {
			require.NoError(t, tx.SetPool(PoolRecord{ID: "i", Mode: mode, Name: "n", BlockSize: 65536, TransactionID: 7}))
			plain, err := tx.Lease(4)
			require.NoError(t, err)
			written, err := tx.LeaseWritten(4)
			require.NoError(t, err)
			require.Equal(t, mode == ModeLoop, written.Written)
			all, err := tx.Leases()
			require.NoError(t, err)
			require.Equal(t, []LeaseRecord{plain, written}, all)
			transaction = id(tx)
			create(tx, "plain", plain.First)
			require.Equal(t, transaction, id(tx))
			create(tx, "a", written.First)
			require.NoError(t, tx.SetBase(BaseRecord{Filesystem: "ext4", Size: 1, VolumeID: written.First + 1}))
			_, err = tx.Commit("plain layer", "plain", CommitChange{Now: now})
			require.NoError(t, err)
			_, err = tx.Commit("layer", "a", CommitChange{Now: now})
			require.NoError(t, err)
			create(tx, "b", plain.First+1)
			_, err = tx.Commit("copy", "b", CommitChange{Now: now, VolumeID: written.First + 2})
			require.NoError(t, err)
			if mode == ModeLoop {
				transaction += 5
			}
			require.Equal(t, transaction, id(tx))
			require.NoError(t, tx.Disown(written.First+3))
			all, err = tx.Leases()
			require.NoError(t, err)
			written.Last--
			require.Equal(t, []LeaseRecord{plain, written}, all)
		})
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
	}
}
