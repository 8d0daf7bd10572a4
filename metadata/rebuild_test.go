package metadata

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// An unreadable View still counts as a child: its volume is its parent's.
func TestRebuildKeepsChildrenThatCannotBeRead(t *testing.T) {
	s := newStore(t, Options{})
	defer func() { require.NoError(t, s.Close()) }() // before newStore's cleanup, which checks the store
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(64)
		require.NoError(t, err)
		require.NoError(t, tx.Create(active("layer-key", "", 2)))
		_, err = tx.Commit("layer", "layer-key", CommitChange{Now: noon})
		require.NoError(t, err)
		require.NoError(t, tx.Create(viewOf("look", "layer", 2)))
	})
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.put(tx.buckets.snapshots, []byte("look"), []byte{99}))
	})
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	for _, p := range problems {
		require.Equal(t, p.Subject == "counters", p.Derived, p.String())
	}
	require.NoError(t, s.Rebuild(t.Context()))
	update(t, s, func(tx *Tx) {
		_, err := tx.Remove("layer", noon)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	})
}

// orphan deletes the record of "low", the parent of "high".
func orphan(tx *Tx) error { return tx.delete(tx.buckets.snapshots, []byte("low")) }

// A snapshot without its parent still owns its device id.
func TestRebuildOfAnOrphan(t *testing.T) {
	t.Run("lost owner", func(t *testing.T) {
		s := furnished(t)
		defer func() { require.NoError(t, s.Close()) }()
		update(t, s, func(tx *Tx) {
			require.NoError(t, orphan(tx))
			require.NoError(t, tx.delete(tx.buckets.devices, encodeDevice(3)))
		})
		require.NoError(t, s.Rebuild(t.Context()))
		view(t, s, func(tx *Tx) {
			owner, ok := tx.Owner(3)
			require.True(t, ok)
			require.Equal(t, Owner{Kind: OwnerSnapshot, Key: "high"}, owner)
		})
	})
	t.Run("disputed id", func(t *testing.T) {
		s := furnished(t)
		defer func() { require.NoError(t, s.Close()) }()
		update(t, s, func(tx *Tx) {
			require.NoError(t, orphan(tx))
			work, err := tx.Get("work")
			require.NoError(t, err)
			work.VolumeID = 3
			require.NoError(t, tx.put(tx.buckets.snapshots, []byte("work"), encodeSnapshot(work)))
		})
		require.ErrorIs(t, s.Rebuild(t.Context()), errdefs.ErrFailedPrecondition)
	})
	t.Run("lost view", func(t *testing.T) {
		s := furnished(t)
		defer func() { require.NoError(t, s.Close()) }()
		update(t, s, func(tx *Tx) {
			require.NoError(t, tx.delete(tx.buckets.snapshots, []byte("high")))
			require.NoError(t, tx.delete(tx.buckets.children, append(childPrefix(3, childView), "look"...)))
		})
		require.NoError(t, s.Rebuild(t.Context()))
		view(t, s, func(tx *Tx) {
			n, err := tx.Views(3)
			require.NoError(t, err)
			require.Equal(t, 1, n, "the volume is known without the parent's record")
		})
	})
}
