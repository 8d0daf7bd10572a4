package metadata

import (
	"bytes"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestWritesLost(t *testing.T) {
	s := newStore(t, Options{})
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	marked := func() (ids []uint32) {
		view(t, s, func(tx *Tx) {
			var err error
			ids, err = tx.WritesLost()
			require.NoError(t, err)
			var single []uint32
			require.NoError(t, tx.ForEach(func(sn Snapshot) error {
				if tx.HasWritesLost(sn) {
					single = append(single, sn.VolumeID)
				}
				return nil
			}))
			require.ElementsMatch(t, ids, single)
		})
		return ids
	}
	requireProblems := func(n int) {
		t.Helper()
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Len(t, problems, n)
		for _, p := range problems {
			require.True(t, p.Derived, "%v", p)
		}
	}
	active := func(key string, id uint32) Snapshot {
		return Snapshot{Key: key, Kind: snapshots.KindActive, VolumeID: id, Size: 1 << 30, Filesystem: "ext4"}
	}
	var first uint32
	update(t, s, func(tx *Tx) {
		lease, err := tx.Lease(8)
		require.NoError(t, err)
		first = lease.First
		require.NoError(t, tx.Create(active("lost", first)))
		require.NoError(t, tx.Create(active("kept", first+1)))
		require.NoError(t, tx.Create(active("removed", first+2)))
		for i := range uint32(4) {
			if i != 1 {
				owned, err := tx.MarkWritesLost(first + i)
				require.NoError(t, err)
				require.Equal(t, i < 3, owned)
			}
		}
	})
	require.Equal(t, []uint32{first, first + 2}, marked())
	requireProblems(0)

	require.ErrorIs(t, s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Commit("layer", "lost", CommitChange{Now: now})
		return err
	}), ErrWritesLost)
	require.ErrorIs(t, ErrWritesLost, errdefs.ErrDataLoss)
	update(t, s, func(tx *Tx) {
		_, err := tx.Commit("layer", "kept", CommitChange{Now: now})
		require.NoError(t, err)
		owned, err := tx.MarkWritesLost(first + 1)
		require.NoError(t, err)
		require.True(t, owned, "it is committed")
		_, err = tx.Remove("removed", now)
		require.NoError(t, err)
	})
	require.Equal(t, []uint32{first}, marked())
	requireProblems(0)

	// A thinsnap without marks removes or commits a snapshot and leaves its mark. A View of the layer has the
	// same key and volume.
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.put(tx.buckets.meta, writesLostKey(first+3), []byte("earlier")))
		require.NoError(t, tx.put(tx.buckets.meta, writesLostKey(first+1), []byte("kept")))
		require.NoError(t, tx.Create(Snapshot{
			Key: "kept", Kind: snapshots.KindView, Parent: "layer", VolumeID: first + 1, Size: 1 << 30, Filesystem: "ext4",
		}))
		require.NoError(t, tx.put(tx.buckets.meta, append(writesLostKey(first+1), 0), []byte("damaged")))
	})
	require.Equal(t, []uint32{first}, marked())
	requireProblems(3)
	require.NoError(t, s.Rebuild(t.Context()))
	require.Equal(t, []uint32{first}, marked())
	requireProblems(0)
}

// TestRebuildKeepsMarksOfUnreadableSnapshots: the record may be readable again after a repair.
func TestRebuildKeepsMarksOfUnreadableSnapshots(t *testing.T) {
	s := newStore(t, Options{})
	var record []byte
	update(t, s, func(tx *Tx) {
		lease, err := tx.Lease(1)
		require.NoError(t, err)
		require.NoError(t, tx.Create(Snapshot{
			Key: "lost", Kind: snapshots.KindActive, VolumeID: lease.First, Size: 1 << 30, Filesystem: "ext4",
		}))
		_, err = tx.MarkWritesLost(lease.First)
		require.NoError(t, err)
		record = bytes.Clone(tx.buckets.snapshots.Get([]byte("lost")))
		require.NoError(t, tx.put(tx.buckets.snapshots, []byte("lost"), []byte("damaged")))
	})
	require.NoError(t, s.Rebuild(t.Context()))
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.put(tx.buckets.snapshots, []byte("lost"), record))
		lost, err := tx.WritesLost()
		require.NoError(t, err)
		require.Len(t, lost, 1)
	})
	require.NoError(t, s.Rebuild(t.Context())) // the first one did not count the snapshot
}
