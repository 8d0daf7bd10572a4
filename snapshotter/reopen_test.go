package snapshotter_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestSpareWhoseDeviceIsGone: another program has removed all unopened mapped devices.
func TestSpareWhoseDeviceIsGone(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.awaitSpares(t, 1)
	b.pool.Crash()
	content, err := b.pool.Read(b.prepare(t, "box", "layer"))
	require.NoError(t, err)
	require.Equal(t, "content", content)
	require.NoError(t, b.Cleanup(t.Context()))
	b.awaitSpares(t, 0)

	b.prepare(t, "second", "layer")
	b.awaitSpares(t, 2)
	before := b.pool.Calls()["Lookup"]
	b.prepare(t, "third", "layer")
	require.Equal(t, before, b.pool.Calls()["Lookup"], "a spare is looked at without an ioctl")
}

// TestPoolThatIsGone: another program has removed the pool from the kernel.
func TestPoolThatIsGone(t *testing.T) {
	var gone atomic.Bool
	var reopened atomic.Int32
	var refusal error
	config := fakeConfig()
	config.Reopen = func(ctx context.Context, verify func(context.Context) error) error {
		if refusal != nil {
			return refusal
		}
		reopened.Add(1)
		gone.Store(false)
		return verify(ctx)
	}
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	b.awaitSpares(t, 1)
	b.pool.SetFault(func(string, thin.ID) error {
		if gone.Load() {
			return pool.ErrNotActive
		}
		return nil
	})
	remove := func() {
		b.pool.Crash()
		gone.Store(true)
	}
	remove()
	content, err := b.pool.Read(b.prepare(t, "box", "layer"))
	require.NoError(t, err)
	require.Equal(t, "content", content)
	require.EqualValues(t, 1, reopened.Load())
	remove()
	_, err = b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	require.EqualValues(t, 2, reopened.Load())

	refusal = errors.New("its disk is missing")
	remove()
	for name, call := range map[string]func() error{
		"Prepare": func() error { _, err := b.Prepare(t.Context(), "other", "layer"); return err },
		"View":    func() error { _, err := b.View(t.Context(), "other view", "layer"); return err },
		"Mounts":  func() error { _, err := b.Mounts(t.Context(), "box"); return err },
		"Commit":  func() error { return b.Commit(t.Context(), "committed", "box") },
		"Usage":   func() error { _, err := b.Usage(t.Context(), "box"); return err },
	} {
		err := call()
		require.True(t, errdefs.IsUnavailable(err), "%s: %v", name, err)
		require.ErrorContains(t, err, "its disk is missing", name)
	}
	_, err = b.Stat(t.Context(), "box")
	require.NoError(t, err)
	require.NoError(t, b.Remove(t.Context(), "view"))
	refusal = nil
	_, err = b.Mounts(t.Context(), "box")
	require.NoError(t, err)
}

// TestCommitWhileThePoolComesBack: a Commit raises the transaction id while the reopened pool is compared
// with the store.
func TestCommitWhileThePoolComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone, comparing atomic.Bool
		config := fakeConfig()
		config.Reopen = func(ctx context.Context, verify func(context.Context) error) error {
			gone.Store(false)
			comparing.Store(true)
			return verify(ctx)
		}
		b := newBench(t, config)
		b.layer(t, "layer", "", "content")
		b.prepare(t, "box", "layer")
		time.Sleep(time.Minute) // for spares
		committed := make(chan error, 1)
		b.pool.SetFault(func(method string, _ thin.ID) error {
			if gone.Load() {
				return pool.ErrNotActive
			}
			if method == "Status" && comparing.CompareAndSwap(true, false) {
				go func() { committed <- b.Commit(t.Context(), "committed", "box") }()
				synctest.Wait()
			}
			return nil
		})
		gone.Store(true)
		_, err := b.View(t.Context(), "view", "layer")
		require.NoError(t, err)
		require.NoError(t, <-committed)
		require.False(t, comparing.Load())
	})
}
