package metadata

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// TestFreeAgain: the search goes on after the last lease, goes round, and prefers a long range.
func TestFreeAgain(t *testing.T) {
	const first = MaxDevice - 99
	s := newStoreFrom(t, first)
	update(t, s, func(tx *Tx) {
		_, err := tx.LeaseAgain(first, first, false)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "it was never leased")
		_, err = tx.Lease(100)
		require.NoError(t, err)
		for _, id := range []uint32{first + 10, first + 20, first + 50} {
			require.NoError(t, tx.Create(active(string(rune('a'+id-first)), "", id)))
		}
		_, _, err = tx.FreeAgain(0, 1)
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.NoError(t, tx.CloseLease(first))
		require.NoError(t, tx.Keep(KeptRecord{VolumeID: first + 60}))
	})
	for _, step := range []struct{ first, last uint32 }{
		{21, 36}, {61, 76}, {77, 92}, {37, 49}, {0, 9}, {11, 19}, {51, 59}, {93, 99},
	} {
		update(t, s, func(tx *Tx) {
			from, to, err := tx.FreeAgain(0, 16)
			require.NoError(t, err)
			require.Equal(t, []uint32{step.first, step.last}, []uint32{from - first, to - first})
			_, err = tx.LeaseAgain(from, to, true)
			require.NoError(t, err)
			_, err = tx.LeaseAgain(from, to, true)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		})
	}
}
