package metadata

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// A snapshot has the number of the client at its creation, then of the one at its Commit.
func TestSnapshotsRecordTheirClient(t *testing.T) {
	s := newStore(t, Options{})
	client := ClientRecord{
		Number: 1, Proxy: "thinsnap", PID: 7, StartTime: 8, BootID: "b", Program: "/usr/bin/containerd", Since: noon,
		Installation: "i", AcceptedBefore: 1,
		Protections: []Protection{{Before: 1}, {Before: 4, Known: map[string]uint64{"default": 3, "k8s.io": 0}}},
	}
	update(t, s, func(tx *Tx) {
		_, err := tx.Client("")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = tx.Lease(10)
		require.NoError(t, err)
		require.NoError(t, tx.Create(active("before", "", 1)))
		require.NoError(t, tx.SetClient("", client))
		require.NoError(t, tx.Create(active("a", "", 2)))
		require.NoError(t, tx.Create(active("b", "", 3)))
	})
	number := func(key string) uint64 {
		var found uint64
		view(t, s, func(tx *Tx) {
			snapshot, err := tx.Get(key)
			require.NoError(t, err)
			found = snapshot.Client
		})
		return found
	}
	require.Zero(t, number("before"))
	require.EqualValues(t, 1, number("a"))
	client.Number = 2
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.SetClient("", client))
		_, err := tx.Commit("layer", "a", CommitChange{Now: noon})
		require.NoError(t, err)
		require.NoError(t, tx.TakeOver("before"))
		require.ErrorIs(t, tx.TakeOver("absent"), errdefs.ErrNotFound)
	})
	require.EqualValues(t, 2, number("layer"))
	require.EqualValues(t, 2, number("before"))
	require.EqualValues(t, 1, number("b"))
	view(t, s, func(tx *Tx) {
		stored, err := tx.Client("")
		require.NoError(t, err)
		require.Equal(t, client, stored)
	})
}

// A record of version 1 ends with its labels, before the numbers of client and base volume.
func TestSnapshotsOfAnEarlierVersionHaveNoClient(t *testing.T) {
	b := encodeSnapshot(active("k", "", 1))
	b[0] = 1
	got, err := decodeSnapshot("k", b[:len(b)-4])
	require.NoError(t, err)
	require.Equal(t, active("k", "", 1), got)
}
