package snapshotter_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

// giveUpWhileStoring calls op, and cancels it while its change is in a transaction that waits for the disk.
// It returns after the transaction.
func (b *bench) giveUpWhileStoring(t *testing.T, op func(ctx context.Context) error) {
	t.Helper()
	hold := func() (release func()) {
		held := make(chan struct{})
		go func() { _ = b.store.Update(context.Background(), func(*metadata.Tx) error { <-held; return nil }) }()
		synctest.Wait()
		return func() { close(held) }
	}
	before := hold()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- op(ctx) }()
	synctest.Wait()
	with := hold()
	before()
	synctest.Wait()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	with()
	synctest.Wait()
}

// TestCallerGivesUpWhileTheStoreSyncs: a creation is undone, so that the key is free. A Commit or Remove
// stands, and its repetition gets the corresponding error.
func TestCallerGivesUpWhileTheStoreSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := fakeConfig()
		config.Spares = 0
		b := newBench(t, config)
		b.layer(t, "layer", "", "content")
		require.NoError(t, b.Cleanup(t.Context()))
		missing := func(key string) {
			t.Helper()
			_, err := b.Stat(t.Context(), key)
			require.ErrorIs(t, err, errdefs.ErrNotFound, key)
		}

		prepare := func(ctx context.Context) error { return second(b.Prepare(ctx, "a", "layer")) }
		b.giveUpWhileStoring(t, prepare)
		missing("a")
		for _, parent := range []string{"layer", ""} {
			view := func(ctx context.Context) error { return second(b.View(ctx, "v", parent)) }
			b.giveUpWhileStoring(t, view)
			missing("v")
			require.NoError(t, view(t.Context()), "the key is free")
			require.NoError(t, b.Remove(t.Context(), "v"))
		}
		b.requireNoLeftovers(t)

		require.NoError(t, prepare(t.Context()))
		update := func(ctx context.Context) error {
			_, err := b.Update(ctx, snapshots.Info{Name: "a", Labels: map[string]string{"label": "value"}}, "labels.label")
			return err
		}
		b.giveUpWhileStoring(t, update)
		info, err := b.Stat(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "value", info.Labels["label"])
		commit := func(ctx context.Context) error { return b.Commit(ctx, "committed", "a") }
		b.giveUpWhileStoring(t, commit)
		require.ErrorIs(t, commit(t.Context()), errdefs.ErrAlreadyExists)
		missing("a")
		remove := func(ctx context.Context) error { return b.Remove(ctx, "committed") }
		b.giveUpWhileStoring(t, remove)
		require.ErrorIs(t, remove(t.Context()), errdefs.ErrNotFound)
		b.requireNoLeftovers(t)
	})
}

func second[T any](_ T, err error) error { return err }
