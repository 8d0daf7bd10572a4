package snapshotter_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// A key that is removed and created again during an operation names another snapshot. The operation must
// not mistake it for the first one.

var errInjected = errors.New("injected")

// during calls f once, in the first call of a method of the pool, which returns f's error.
func (b *bench) during(method string, f func() error) {
	var called atomic.Bool
	b.pool.SetFault(func(m string, _ thin.ID) error {
		if m == method && called.CompareAndSwap(false, true) {
			return f()
		}
		return nil
	})
}

func TestParentReplacedMeanwhile(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	for method, create := range map[string]func() error{
		"Status": func() error { _, err := b.Prepare(t.Context(), "child", "layer"); return err },
		"Lookup": func() error { _, err := b.View(t.Context(), "child", "layer"); return err },
	} {
		b.layer(t, "layer", "", "old")
		require.NoError(t, b.Cleanup(t.Context()))
		b.during(method, func() error {
			require.NoError(t, b.Remove(t.Context(), "layer"))
			b.layer(t, "layer", "", "new")
			return nil
		})
		require.ErrorIs(t, create(), errdefs.ErrNotFound, "its parent was removed")
		require.NoError(t, create())
		require.NoError(t, b.Remove(t.Context(), "child"))
		require.Equal(t, "new", b.content(t, "layer"))
		require.NoError(t, b.Remove(t.Context(), "layer"))
	}
	b.requireNoLeftovers(t)
}

// The Commit fails, because the content of the new volume is not flushed.
func TestCommitOfAKeyReplacedMeanwhile(t *testing.T) {
	for _, openers := range []int{0, 1} {
		b := newBench(t, fakeConfig())
		dev := b.prepare(t, "a", "")
		require.NoError(t, b.pool.Write(dev, "old"))
		require.NoError(t, b.pool.Open(dev, openers))
		b.during("Usage", func() error {
			require.NoError(t, b.Remove(t.Context(), "a"))
			return b.pool.Write(b.prepare(t, "a", ""), "new")
		})
		require.ErrorIs(t, b.Commit(t.Context(), "layer", "a"), errdefs.ErrNotFound)
		info, err := b.Stat(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, snapshots.KindActive, info.Kind)
		require.NoError(t, b.Commit(t.Context(), "layer", "a"))
		if openers > 0 { // otherwise the device may be gone
			require.NoError(t, b.pool.Open(dev, -openers))
		}
		b.restart(t, true)
		require.Equal(t, "new", b.content(t, "layer"))
		b.requireNoLeftovers(t)
	}
}

// A Prepare that fails removes only its own record.
func TestFailedPrepareOfAKeyReplacedMeanwhile(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.during("Activate", func() error {
		require.Eventually(t, func() bool { return b.Remove(t.Context(), "a") == nil }, 10*time.Second, time.Millisecond)
		b.layer(t, "a", "", "content")
		return errInjected
	})
	_, err := b.Prepare(t.Context(), "a", "")
	require.ErrorIs(t, err, errInjected)
	require.Equal(t, "content", b.content(t, "a"))

	require.NoError(t, b.Cleanup(t.Context())) // it activates volumes to discard them
	b.during("Activate", func() error {
		require.Eventually(t, func() bool { return b.Remove(t.Context(), "b") == nil }, 10*time.Second, time.Millisecond)
		return errInjected
	})
	_, err = b.Prepare(t.Context(), "b", "")
	require.ErrorIs(t, err, errInjected)
	require.NotErrorIs(t, err, errdefs.ErrNotFound, "the removal by another client is not the error")
	b.requireNoLeftovers(t)
}

// slowNames is a pool that calls a function in VolumePath.
type slowNames struct {
	*fakepool.Pool
	asked func()
}

func (p *slowNames) VolumePath(id thin.ID) string {
	p.asked()
	return p.Pool.VolumePath(id)
}

func TestUsageOfWhatIsRemovedMeanwhile(t *testing.T) {
	b := newBench(t, fakeConfig())
	p := &slowNames{b.pool, func() {}}
	require.NoError(t, b.Close())
	b.openStore(t)
	var err error
	b.Snapshotter, err = snapshotter.New(t.Context(), b.config, b.store, p, b.pool)
	require.NoError(t, err)
	for _, again := range []bool{false, true} {
		b.prepare(t, "a", "")
		p.asked = func() {
			p.asked = func() {}
			require.NoError(t, b.Remove(t.Context(), "a"))
			require.NoError(t, b.Cleanup(t.Context()))
			if again {
				b.prepare(t, "a", "")
			}
		}
		_, err = b.Usage(t.Context(), "a")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
}

// A View that is recorded during SettleDevice has already released its pin.
func TestSettleDeviceBesideAView(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Cleanup(t.Context()))
	id := b.volume(t, "layer")
	held, hold, viewed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_ = b.store.Update(t.Context(), func(*metadata.Tx) error {
			close(held)
			<-hold
			return nil
		})
	}()
	<-held
	go func() {
		_, err := b.View(t.Context(), "view", "layer")
		viewed <- err
	}()
	require.Eventually(t, func() bool { _, err := b.pool.Lookup(t.Context(), id); return err == nil }, 10*time.Second, time.Millisecond)
	b.during("Lookup", func() error {
		close(hold)
		return <-viewed
	})
	require.NoError(t, b.SettleDevice(t.Context(), id))
	_, err := b.pool.Lookup(t.Context(), id)
	require.NoError(t, err, "the View has lost its device")
}
