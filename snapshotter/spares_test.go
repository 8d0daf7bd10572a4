package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// awaitSpares waits until n spares are ready and none is being created.
func (b *bench) awaitSpares(t testing.TB, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return int(b.Spares().Present) == n && len(b.pool.IDs()) == b.owned(t)+n
	}, 10*time.Second, time.Millisecond)
}

func TestPrepareTakesASpare(t *testing.T) {
	config := fakeConfig()
	config.MaxBytes = 128 << 20
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	b.awaitSpares(t, 1)
	before := b.pool.IDs()
	dev := b.prepare(t, "container", "layer")
	var paths []string
	for id := range before {
		paths = append(paths, b.pool.VolumePath(id))
	}
	require.Contains(t, paths, dev)
	content, err := b.pool.Read(dev)
	require.NoError(t, err)
	require.Equal(t, "content", content)

	b.prepare(t, "second", "layer")
	b.awaitSpares(t, 2)
	require.NotEqual(t, dev, b.prepare(t, "third", "layer"))
	// Spares have the default size, so a snapshot of another size takes none. More spares are made if the
	// third Prepare found one that was being made.
	require.Eventually(t, func() bool { return b.Spares().Present >= 2 }, time.Minute, time.Millisecond)
	taken := b.Spares().Taken
	b.prepare(t, "large", "layer", labels("containerd.io/snapshot/thinsnap/size", "128MiB"))
	require.Equal(t, taken, b.Spares().Taken)
}

// A discard of an origin does not free the blocks that a spare shares.
func TestSparesAreDeletedBeforeTheirOrigin(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.awaitSpares(t, 1)
	var mu sync.Mutex
	var calls []string
	b.pool.SetFault(func(method string, _ thin.ID) error {
		mu.Lock()
		defer mu.Unlock()
		if method == "Delete" || method == "Discard" {
			calls = append(calls, method)
		}
		return nil
	})
	require.NoError(t, b.Remove(t.Context(), "layer"))
	require.NoError(t, b.Cleanup(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"Delete", "Discard", "Delete"}, calls)
	require.Len(t, b.pool.IDs(), 1, "the base volume")
}

func TestCloseDeletesSpares(t *testing.T) {
	for name, c := range map[string]struct {
		wait time.Duration
		made int
	}{"made": {time.Minute, 3}, "in the making": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, fakeConfig())
				b.layer(t, "one", "", "content")
				b.layer(t, "two", "one", "content")
				synctest.Wait()
				b.pool.SetFault(func(method string, _ thin.ID) error {
					if method == "CreateSnap" {
						time.Sleep(time.Second)
					}
					return nil
				})
				b.prepare(t, "container", "one")
				time.Sleep(c.wait)
				require.EqualValues(t, 3, b.Spares().Present, "two of layer one, one of layer two")
				require.Len(t, b.SpareVolumes(), c.made)
				require.NoError(t, b.Close())
				require.Len(t, b.pool.IDs(), 4, "the base volume, two layers and the container")
				b.openStore(t)
				require.NoError(t, b.start(t))
			})
		})
	}
}

// Close waits for a spare that is being created and already off the list: the next start looks for
// leftovers only once, and would miss it.
func TestCloseWaitsForSparesBeingCreated(t *testing.T) {
	for name, use := range map[string]func(*testing.T, *bench){
		"its origin is removed": func(t *testing.T, b *bench) {
			require.NoError(t, b.Remove(t.Context(), "layer"))
			time.Sleep(time.Second) // until the reaper waits for the spare
		},
		"its Prepare has given up": func(t *testing.T, b *bench) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := b.Prepare(ctx, "container", "layer")
			require.ErrorIs(t, err, context.DeadlineExceeded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, fakeConfig())
				dev := b.prepare(t, "active", "")
				require.NoError(t, b.pool.Write(dev, "content"))
				// The call is in the kernel, so the end of its context does not end it.
				created := make(chan struct{})
				b.pool.SetFault(func(method string, _ thin.ID) error {
					if method == "CreateSnap" {
						<-created
					}
					return nil
				})
				require.NoError(t, b.Commit(t.Context(), "layer", "active"))
				use(t, b)
				closed := make(chan error)
				go func() { closed <- b.Close() }()
				go func() {
					time.Sleep(5 * time.Second)
					close(created)
				}()
				require.NoError(t, <-closed)
				// The next start looks for leftovers while the origin still exists.
				b.pool.SetFault(func(method string, _ thin.ID) error {
					if method == "Discard" {
						time.Sleep(time.Minute)
					}
					return nil
				})
				b.openStore(t)
				require.NoError(t, b.start(t))
				time.Sleep(2 * time.Minute)
				b.requireNoLeftovers(t)
			})
		})
	}
}

// After a crash, spares have no record, but are in a lease.
func TestCrashWithSpares(t *testing.T) {
	for name, crash := range map[string]bool{"of the daemon": false, "of the machine": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.layer(t, "layer", "", "content")
			b.prepare(t, "one", "layer")
			b.prepare(t, "two", "layer")
			b.awaitSpares(t, 2)
			b.pool.SetFault(func(method string, _ thin.ID) error {
				if method == "Deactivate" || method == "Delete" {
					return errors.New("the daemon is gone")
				}
				return nil
			})
			require.NoError(t, b.Close())
			require.Len(t, b.pool.IDs(), 4+2)
			b.pool.SetFault(func(string, thin.ID) error { return nil })
			if crash {
				b.pool.Crash()
			}
			b.openStore(t)
			require.NoError(t, b.start(t))
			require.Zero(t, b.Spares().Present)
			b.requireNoLeftovers(t)
			require.Equal(t, "content", b.content(t, "layer"))
		})
	}
}

func TestNoSparesInAFullPool(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.prepare(t, "one", "layer")
	b.prepare(t, "two", "layer")
	b.awaitSpares(t, 2)
	b.pool.SetStatus(func(s *pool.Status) { s.Data.Used = s.Data.Total / 100 * 95 })
	_, err := b.Prepare(t.Context(), "three", "layer")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	b.awaitSpares(t, 0)
}

// A spare must not be used in a pool that takes no changes.
func TestNoPrepareInABrokenPool(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	for _, mode := range []thin.Mode{thin.ModeReadOnly, thin.ModeFail} {
		b.awaitSpares(t, 1)
		b.pool.SetStatus(func(s *pool.Status) { s.Mode = mode })
		_, err := b.Prepare(t.Context(), "container", "layer")
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadWrite })
	}
	b.prepare(t, "container", "layer")
}

// The record of a snapshot may be visible before its volume is active. Its reader must not activate the
// volume a second time.
func TestMountsBesidePrepare(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	for round := range 50 {
		key := fmt.Sprint("key-", round)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for {
					_, err := b.Mounts(t.Context(), key)
					if !errdefs.IsNotFound(err) {
						assert.NoError(t, err)
						return
					}
				}
			})
		}
		b.prepare(t, key, "layer")
		all.Wait()
	}
}
