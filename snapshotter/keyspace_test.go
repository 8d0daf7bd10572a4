package snapshotter_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// spaceSubject is the subject of the clients of one key space.
type spaceSubject struct {
	*snapshotter.KeySpace
	all   *snapshotter.Snapshotter
	space string
}

func (s spaceSubject) Freeze(ctx context.Context, key string) (*snapshotter.Frozen, error) {
	return s.all.Freeze(ctx, metadata.KeyPrefix(s.space)+key)
}

func (s spaceSubject) IssueFork(ctx context.Context, key string) (string, error) {
	return s.all.IssueFork(ctx, metadata.KeyPrefix(s.space)+key)
}

func (b *bench) in(space string) spaceSubject {
	return spaceSubject{b.In(space), b.Snapshotter, space}
}

func (b *bench) admit(t *testing.T, spaces ...string) {
	t.Helper()
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error {
		for _, space := range spaces {
			if err := tx.SetClient(space, metadata.ClientRecord{Number: 1}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// TestModelOfSeveralClients runs random operations of the clients of three key spaces, with the same keys
// and concurrently on one pool. The model must explain each key space without the others.
func TestModelOfSeveralClients(t *testing.T) {
	t.Parallel()
	config := fakeConfig()
	config.Spares = 4
	b := newBench(t, config)
	spaces := []string{"", "k3s", "k3s-2"}
	b.admit(t, spaces[1:]...)
	var rounds int
	for end := time.Now().Add(modelTime); time.Now().Before(end); rounds++ {
		b.severalRound(t, spaces, rand.Uint64())
	}
	t.Logf("%d rounds", rounds)
}

func (b *bench) severalRound(t *testing.T, spaces []string, seed uint64) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	histories := make([]history, len(spaces))
	for part := range uint64(2) {
		b.pool.SetFault(func(string, thin.ID) error {
			if rand.IntN(3) == 0 {
				time.Sleep(time.Microsecond << rand.IntN(13))
			}
			return nil
		})
		var all sync.WaitGroup
		for i, space := range spaces {
			all.Go(func() { histories[i].run(t, b.in(space), b.pool, seed+part+uint64(10*i), false) })
		}
		all.Wait()
		b.pool.SetFault(func(string, thin.ID) error { return nil })
		if part == 0 {
			b.restart(t, rand.IntN(2) == 0)
		}
	}
	for i, space := range spaces { // one at a time: the others' snapshots remain
		histories[i].end(t, b.in(space), b.pool)
	}
	b.requireNoLeftovers(t)
}

func walked(t *testing.T, sn snapshots.Snapshotter, filters ...string) (all []string) {
	t.Helper()
	require.NoError(t, sn.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		all = append(all, info.Name+" < "+info.Parent)
		return nil
	}, filters...))
	return all
}

// TestClientSeesItsOwn: all results for a client have its own keys, errors too.
func TestClientSeesItsOwn(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.admit(t, "k3s")
	one, other := b.in(""), b.in("k3s")
	for _, sn := range []spaceSubject{one, other} {
		_, err := sn.Prepare(t.Context(), "ns/1/a", "", labels("l", "v"))
		require.NoError(t, err)
		require.NoError(t, sn.Commit(t.Context(), "ns/2/layer", "ns/1/a"))
		_, err = sn.View(t.Context(), "ns/3/view", "ns/2/layer")
		require.NoError(t, err)
	}
	want := []string{"ns/2/layer < ", "ns/3/view < ns/2/layer"}
	require.NoError(t, one.Remove(t.Context(), "ns/3/view"))
	require.Equal(t, want[:1], walked(t, one))
	require.Equal(t, want, walked(t, other))
	require.Equal(t, want[1:], walked(t, other, `parent=="ns/2/layer"`))
	require.NoError(t, one.Remove(t.Context(), "ns/2/layer"))
	require.NoError(t, one.Cleanup(t.Context()))
	require.Empty(t, walked(t, one))
	require.Equal(t, want, walked(t, other))

	info, err := other.Stat(t.Context(), "ns/3/view")
	require.NoError(t, err)
	require.Equal(t, "ns/2/layer", info.Parent)
	info, err = other.Update(t.Context(), snapshots.Info{Name: "ns/3/view", Labels: map[string]string{"l": "w"}})
	require.NoError(t, err)
	require.Equal(t, "ns/3/view", info.Name)
	_, err = other.Usage(t.Context(), "ns/2/layer")
	require.NoError(t, err)

	_, err = other.Prepare(t.Context(), "ns/3/view", "ns/2/layer")
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	for _, err := range []error{
		err, other.Remove(t.Context(), "ns/2/layer"), other.Remove(t.Context(), "ns/9/none"),
		other.Commit(t.Context(), "ns/9/none", "ns/3/view"),
	} {
		require.ErrorContains(t, err, `"ns/`)
		require.NotContains(t, err.Error(), "k3s")
		require.NotContains(t, err.Error(), `\xff`)
	}
}

// TestKeysOfOtherClientsAreRefused: a client cannot name another client's snapshots with any bytes.
func TestKeysOfOtherClientsAreRefused(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.admit(t, "k3s")
	other := b.in("k3s")
	_, err := other.Prepare(t.Context(), "ns/1/a", "")
	require.NoError(t, err)
	require.NoError(t, other.Commit(t.Context(), "ns/2/layer", "ns/1/a"))
	for _, sn := range []spaceSubject{b.in(""), other, b.in("never")} {
		for _, key := range []string{"\xffk3s/ns/2/layer", "\xff", "", strings.Repeat("a", metadata.MaxKeyLength+1)} {
			_, err := sn.Stat(t.Context(), key)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			require.ErrorIs(t, sn.Remove(t.Context(), key), errdefs.ErrInvalidArgument)
			_, err = sn.Prepare(t.Context(), key, "")
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			require.ErrorIs(t, sn.Commit(t.Context(), "ns/3/b", key), errdefs.ErrInvalidArgument)
			require.ErrorIs(t, sn.Commit(t.Context(), key, "ns/3/b"), errdefs.ErrInvalidArgument)
			_, err = sn.Mounts(t.Context(), key)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			_, err = sn.Usage(t.Context(), key)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			_, err = sn.Update(t.Context(), snapshots.Info{Name: key})
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			if key != "" {
				_, err = sn.View(t.Context(), "ns/3/b", key)
				require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			}
		}
	}
	_, err = b.in("never").Prepare(t.Context(), "ns/1/a", "")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "no client is recorded")
	require.Equal(t, []string{"ns/2/layer < "}, walked(t, other))
	require.Empty(t, walked(t, b.in("")))
	require.Empty(t, walked(t, b.in("k3")))
}

// TestForkStaysWithItsClient: a token is for one client, even if another one has the same keys and
// namespaces.
func TestForkStaysWithItsClient(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.admit(t, "k3s", "k3s-2")
	for _, space := range []string{"", "k3s", "k3s-2"} {
		_, err := b.in(space).Prepare(t.Context(), "ns/1/a", "")
		require.NoError(t, err)
	}
	token, err := b.in("k3s").IssueFork(t.Context(), "ns/1/a")
	require.NoError(t, err)
	for _, space := range []string{"", "k3s-2"} {
		_, err = b.in(space).Prepare(t.Context(), "ns/2/fork", "", from(token))
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	_, err = b.in("k3s").Prepare(t.Context(), "other/2/fork", "", from(token))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = b.in("k3s").Prepare(t.Context(), "ns/2/fork", "", from(token))
	require.NoError(t, err)
}

// TestUnpackOfAnyClient: the key of an unpack is recognised in each key space.
func TestUnpackOfAnyClient(t *testing.T) {
	chain := "sha256:" + strings.Repeat("a", 64)
	for _, space := range []string{"", "k3s"} {
		require.True(t, snapshotter.IsUnpackKey(metadata.KeyPrefix(space)+"default/1/extract-1-x "+chain))
		require.False(t, snapshotter.IsUnpackKey(metadata.KeyPrefix(space)+"default/1/extract-logs"))
	}
}
