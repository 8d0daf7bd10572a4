package clients_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// benchSpace is the key space of new benches.
var benchSpace string

// addOthers adds other clients to the store of a client with a further key space, with some of its keys and with
// numbers that it has not used yet. The returned function requires that their snapshots are unchanged.
func (b *bench) addOthers(t *testing.T, inner *snapshotter.Snapshotter) (unchanged func()) {
	t.Helper()
	if b.space == "" {
		return func() {}
	}
	spaces := []string{"", "k3s-2"}
	client := metadata.ClientRecord{Number: 3, Proxy: "other", Installation: "of another", AcceptedBefore: 2}
	for _, space := range spaces {
		require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.SetClient(space, client) }))
		for _, key := range []string{"default/1/box", "default/2/box", "default/900/box", "other/1/known", "other/7/box"} {
			_, err := inner.In(space).Prepare(t.Context(), key, "")
			require.NoError(t, err)
		}
	}
	return func() {
		require.NoError(t, b.store.View(context.Background(), func(tx *metadata.Tx) error {
			for _, space := range spaces {
				count, err := tx.CountByKindIn(space)
				require.NoError(t, err)
				require.Equal(t, metadata.KindCounts{Active: 5}, count)
				is, err := tx.Client(space)
				require.NoError(t, err)
				require.Equal(t, client, is)
			}
			return tx.ForEach(func(s metadata.Snapshot) error {
				if space, _ := metadata.SplitKey(s.Key); space != b.space {
					require.EqualValues(t, 3, s.Client)
				}
				return nil
			})
		}))
	}
}

// TestOneOfSeveral runs the tests of a client for one of several, and requires that the others are unchanged.
func TestOneOfSeveral(t *testing.T) {
	benchSpace = "k3s"
	defer func() { benchSpace = "" }()
	for name, test := range map[string]func(*testing.T){
		"second process": TestSecondProcessIsRefused, "renamed": TestRenamedProxyIsRefused, "restarted": TestRestartedContainerd,
		"restored": TestRestoredContainerd, "wiped": TestWipedContainerd, "other installation": TestOtherInstallation,
		"unseen": TestUnseenProcess, "tells what it knows": TestRestoredContainerdTellsWhatItKnows,
		"killed in Commit": TestKilledInCommit, "namespace made again": TestNamespaceMadeAgain, "restored twice": TestRestoredTwice,
		"known": TestKnownIsNotKept, "out of order": TestGivenOutOfOrder, "list that takes long": TestListThatTakesLong,
		"slow": TestSlowContainerd, "first call is cancelled": TestFirstCallIsCancelled,
	} {
		t.Run(name, test)
	}
}

// While no process has been the client, Reset records none.
func TestResetOfNone(t *testing.T) {
	b := newBench(t)
	r := clients.New(b.store, "k3s")
	defer r.Close()
	require.NoError(t, r.Reset(t.Context()))
	require.ErrorIs(t, r.Accept(t.Context()), errdefs.ErrFailedPrecondition)
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		require.Empty(t, tx.KeySpaces())
		return nil
	}))
}
