package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

func TestFullPoolRefusesNewSnapshotsOnly(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.prepare(t, "a", "layer")
	for name, fill := range map[string]func(*pool.Status){
		"data":     func(s *pool.Status) { s.Data.Used = s.Data.Total*9/10 + 1<<20 },
		"metadata": func(s *pool.Status) { s.Metadata.Used = s.Metadata.Total*9/10 + 1<<20 },
	} {
		t.Run(name, func(t *testing.T) {
			var before pool.Status
			b.pool.SetStatus(func(s *pool.Status) { before = *s; fill(s) })
			defer b.pool.SetStatus(func(s *pool.Status) { s.Data, s.Metadata = before.Data, before.Metadata })
			_, err := b.Prepare(t.Context(), "b", "layer")
			require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
			require.ErrorContains(t, err, "bytes of "+name)
			_, err = b.Mounts(t.Context(), "a")
			require.NoError(t, err)
		})
	}
	require.NoError(t, b.Commit(t.Context(), "done", "a"))
}

// TestPrepareExtendsThePoolFirst: Prepare is refused only if that does not help.
func TestPrepareExtendsThePoolFirst(t *testing.T) {
	config := fakeConfig()
	config.MinFreePercent = 10
	var asked []uint64
	help := true
	var b *bench
	config.MakeRoom = func(_ context.Context, percent uint64) {
		asked = append(asked, percent)
		if help {
			b.pool.SetStatus(func(s *pool.Status) { s.Data.Total *= 2; s.Data.Available = s.Data.Total - s.Data.Used })
		}
	}
	b = newBench(t, config)
	b.layer(t, "layer", "", "content")
	b.prepare(t, "a", "layer")
	require.Empty(t, asked)
	fill := func(s *pool.Status) {
		s.Data.Used = s.Data.Total*9/10 + 1<<20
		s.Data.Available = s.Data.Total - s.Data.Used
	}
	b.pool.SetStatus(fill)
	b.prepare(t, "b", "layer")
	require.Equal(t, []uint64{10}, asked)
	b.pool.SetStatus(fill)
	help = false
	_, err := b.Prepare(t.Context(), "c", "layer")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.Contains(t, asked[1:], uint64(10))
}

// TestFullPoolIsNamedFull: the error says that writes wait, and not that too little is free.
func TestFullPoolIsNamedFull(t *testing.T) {
	config := fakeConfig()
	config.MinFreePercent = 10
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.Data.Used, s.Data.Available = thin.ModeOutOfDataSpace, s.Data.Total, 0 })
	_, err := b.Prepare(t.Context(), "a", "layer")
	for _, err := range []error{err, b.Refusal(t.Context())} {
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.ErrorContains(t, err, "the pool has no space left")
		require.ErrorContains(t, err, "remove snapshots, or make the pool larger with `thinsnap pool extend`")
	}
	b.setMode(thin.ModeReadWrite)
}

func TestWrongPoolIsRefusedAndLeftAlone(t *testing.T) {
	for name, change := range map[string]func(*pool.Status){
		"block size": func(s *pool.Status) { s.BlockBytes *= 2 },
		"newer pool": func(s *pool.Status) { s.TransactionID += 7 },
		"older pool": func(s *pool.Status) { s.TransactionID -= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			for i := range 100 {
				b.prepare(t, fmt.Sprint(i), "")
			}
			require.NoError(t, b.Close())
			b.pool.Crash()
			ids := b.pool.IDs()
			var before pool.Status
			b.pool.SetStatus(func(s *pool.Status) { before = *s; change(s) })
			b.openStore(t)
			err := b.start(t)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, "nothing was changed")
			require.Equal(t, ids, b.pool.IDs())

			b.pool.SetStatus(func(s *pool.Status) { *s = before })
			require.NoError(t, b.start(t))
		})
	}
}

// The kernel reports no numbers for a failed pool, which proves nothing about its identity.
func TestFailedPoolIsNotTheWrongOne(t *testing.T) {
	for _, mode := range []thin.Mode{thin.ModeFail, thin.ModeError} {
		b := newBench(t, fakeConfig())
		for i := range 100 {
			b.prepare(t, fmt.Sprint(i), "")
		}
		require.NoError(t, b.Close())
		var before pool.Status
		b.pool.SetStatus(func(s *pool.Status) { before = *s; s.PoolStatus = thin.PoolStatus{Mode: mode} })
		b.openStore(t)
		err := b.start(t)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.NotErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "thinsnap pool check")
		require.NotContains(t, err.Error(), "destroy")
		b.pool.SetStatus(func(s *pool.Status) { *s = before })
		require.NoError(t, b.start(t))
	}
}

func TestPoolThatLostItsContentIsRefused(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Close())
	b.pool.Replace()
	b.mismatched = true
	b.openStore(t)
	require.ErrorIs(t, b.start(t), errdefs.ErrFailedPrecondition)
	require.NoError(t, b.store.Close())
	require.Empty(t, b.pool.IDs())
}

func TestPoolOneLeaseBehindIsStampedAgain(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	require.NoError(t, b.Close())
	b.pool.Crash()
	b.pool.SetStatus(func(s *pool.Status) { s.TransactionID-- })
	b.openStore(t)
	require.NoError(t, b.start(t))
	b.prepare(t, "a", "layer")
}

func TestFailedOperationsLeaveNothing(t *testing.T) {
	injected := errors.New("injected")
	for _, method := range []string{"CreateSnap", "Activate", "Flush", "Lookup", "Usage", "Deactivate", "Delete", "Discard", "Status", "Suspend"} {
		t.Run(method, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.layer(t, "layer", "", "content")
			require.NoError(t, b.Cleanup(t.Context()))
			var once sync.Once
			b.pool.SetFault(func(m string, _ thin.ID) (err error) {
				if m == method {
					once.Do(func() { err = injected })
				}
				return err
			})
			ctx := t.Context()
			if _, err := b.Prepare(ctx, "a", "layer"); err != nil {
				require.ErrorIs(t, err, injected)
				_, err = b.Stat(ctx, "a")
				require.ErrorIs(t, err, errdefs.ErrNotFound)
				b.prepare(t, "a", "layer")
			}
			if err := b.Commit(ctx, "b", "a"); err != nil {
				require.ErrorIs(t, err, injected)
				require.NoError(t, b.Commit(ctx, "b", "a"))
			}
			if _, err := b.View(ctx, "v", "b"); err != nil {
				require.ErrorIs(t, err, injected)
				_, err = b.View(ctx, "v", "b")
				require.NoError(t, err)
			}
			require.NoError(t, b.Remove(ctx, "v"))
			require.NoError(t, b.Remove(ctx, "b"))
			b.requireNoLeftovers(t)
		})
	}
}

func TestCancelledContextsLeaveNothing(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	for after := range int32(8) {
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int32
		b.pool.SetFault(func(string, thin.ID) error {
			if calls.Add(1) > after {
				cancel()
			}
			return nil
		})
		key := fmt.Sprint("key-", after)
		_, err := b.Prepare(ctx, key, "layer")
		if err == nil {
			err = b.Commit(ctx, key+"-layer", key)
		}
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		cancel()
	}
	b.requireNoLeftovers(t)
}

func TestSameKeyFromManyClients(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	const clients = 64
	var (
		wg sync.WaitGroup
		mu sync.Mutex
		ok int
	)
	for range clients {
		wg.Go(func() {
			_, err := b.Prepare(t.Context(), "key", "layer")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ok++
			} else if !errdefs.IsAlreadyExists(err) {
				t.Errorf("prepare: %v", err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, ok)
	b.requireNoLeftovers(t)
}

func TestParentRemovedWhileChildrenAreMade(t *testing.T) {
	b := newBench(t, fakeConfig())
	for round := range 20 {
		parent := fmt.Sprint("parent-", round)
		b.layer(t, parent, "", "content")
		var wg sync.WaitGroup
		made := make([]bool, 4)
		for i := range made {
			wg.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = b.Prepare(t.Context(), fmt.Sprint(parent, "/", i), parent)
				} else {
					_, err = b.View(t.Context(), fmt.Sprint(parent, "/", i), parent)
				}
				made[i] = err == nil
				if err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("child of a parent that goes: %v", err)
				}
			})
		}
		err := b.Remove(t.Context(), parent)
		wg.Wait()
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, "cannot remove snapshot with child")
		}
		for i, ok := range made {
			require.True(t, err != nil || !ok, "a removed parent has child %d", i)
		}
	}
	b.requireNoLeftovers(t)
}

// The kernel can leave a volume that must not be deleted, and logs an error for each deletion of a missing
// volume.
func TestLeftoversOfAnEarlierRun(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	left := slices.Max(slices.Collect(maps.Keys(b.pool.IDs()))) + 1
	require.NoError(t, b.pool.CreateThin(t.Context(), left))
	require.NoError(t, b.pool.CreateThin(t.Context(), left+1))
	b.pool.Break(left)
	deleted := b.pool.Calls()["Delete"]
	b.restart(t, true)
	require.NoError(t, b.Cleanup(t.Context()))
	require.True(t, b.pool.IDs()[left])
	require.False(t, b.pool.IDs()[left+1])
	require.Equal(t, deleted+1, b.pool.Calls()["Delete"])
	require.Equal(t, "content", b.content(t, "layer"))
}

// TestSuspendedDeviceThatIsRemoved: a start finds a device that the kernel is removing.
func TestSuspendedDeviceThatIsRemoved(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "")
	active, err := b.pool.Active(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, active)
	removed := active[0].ID
	require.NoError(t, b.pool.Suspend(t.Context(), removed))
	b.pool.SetFault(func(op string, id thin.ID) error {
		if op == "Resume" && id == removed {
			return devmapper.ErrNotFound
		}
		return nil
	})
	b.restart(t, false)
	b.pool.SetFault(func(string, thin.ID) error { return nil })
}

// A crash during a Commit may leave a volume suspended, and a container blocked by it.
func TestSuspendedVolumesAreResumed(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, "a", "")
	require.NoError(t, b.pool.Open(dev, 1))
	active, err := b.pool.Active(t.Context())
	require.NoError(t, err)
	for _, vol := range active {
		require.NoError(t, b.pool.Suspend(t.Context(), vol.ID))
	}
	b.restart(t, false)
	active, err = b.pool.Active(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, active)
	for _, vol := range active {
		require.False(t, vol.Suspended, "volume %d", vol.ID)
	}
	require.NoError(t, b.pool.Open(dev, -1))
}
