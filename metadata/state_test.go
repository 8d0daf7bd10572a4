package metadata

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestVolumeState(t *testing.T) {
	s := furnished(t)
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.Create(viewOf("empty", "", 1)))
		_, err := tx.Commit("done", "work", CommitChange{Now: noon, VolumeID: 6})
		require.NoError(t, err)
	})
	states := func(want map[uint32]VolumeState) {
		view(t, s, func(tx *Tx) {
			for id, want := range want {
				got, err := tx.VolumeState(id)
				require.NoError(t, err)
				require.Equal(t, want, got, id)
			}
		})
	}
	states(map[uint32]VolumeState{
		1: VolumeViewed, 2: VolumeIdle, 3: VolumeViewed, 4: VolumeTrash, 5: VolumeInUse, 6: VolumeIdle,
		7: VolumeLeased, 64: VolumeLeased, 65: VolumeUnknown, MaxDevice: VolumeUnknown,
	})
	update(t, s, func(tx *Tx) {
		for _, key := range []string{"empty", "look"} {
			_, err := tx.Remove(key, noon)
			require.NoError(t, err)
		}
		require.NoError(t, tx.ClearTrash(4))
		require.NoError(t, tx.CloseLease(1))
	})
	states(map[uint32]VolumeState{1: VolumeIdle, 3: VolumeIdle, 4: VolumeUnknown, 5: VolumeInUse, 7: VolumeUnknown})
}

// While a record about a volume cannot be read, the volume stays.
func TestVolumeStateOfDamage(t *testing.T) {
	s := furnished(t)
	undo := errors.New("undo")
	err := s.Update(t.Context(), func(tx *Tx) error {
		require.NoError(t, tx.put(tx.buckets.snapshots, []byte("high"), []byte{0xff}))
		got, err := tx.VolumeState(3)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.Equal(t, VolumeInUse, got)

		require.NoError(t, tx.put(tx.buckets.devices, encodeDevice(3), []byte{0xff}))
		got, err = tx.VolumeState(3)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.Equal(t, VolumeInUse, got)

		require.NoError(t, tx.put(tx.buckets.leases, encodeDevice(1), []byte{0xff}))
		got, err = tx.VolumeState(7)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.Equal(t, VolumeLeased, got)
		return undo
	})
	require.ErrorIs(t, err, undo)
}
