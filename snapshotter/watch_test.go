package snapshotter_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Content written while the pool failed writes may be lost, however short that was. Only the pool's state
// shows it.
func TestNothingIsCommittedThatMayBeLost(t *testing.T) {
	// Ends between two checks, which are at whole seconds.
	const short = 3500 * time.Millisecond
	holds := func(timeout time.Duration) func(*pool.Status) {
		return func(s *pool.Status) { s.Mode, s.NoSpaceTimeout = thin.ModeOutOfDataSpace, timeout }
	}
	for name, c := range map[string]struct {
		lost   bool
		during func(*pool.Status)
		long   time.Duration
	}{
		"holds writes back":              {false, holds(time.Minute), short},
		"holds writes back for less":     {false, holds(time.Minute), time.Minute - 2*short},
		"holds writes back, then fails":  {true, holds(time.Minute), time.Minute + short/10},
		"holds writes back for ever":     {false, holds(0), time.Hour + short},
		"fails writes after two seconds": {true, holds(2 * time.Second), short},

		"fails writes":                 {true, func(s *pool.Status) { s.Mode, s.QueueIfNoSpace = thin.ModeOutOfDataSpace, false }, short},
		"read-only":                    {true, func(s *pool.Status) { s.Mode = thin.ModeReadOnly }, short},
		"failed":                       {true, func(s *pool.Status) { s.Mode = thin.ModeFail }, short},
		"disk below full":              {true, func(s *pool.Status) { s.Data.Holes, s.Data.DiskFree = 1<<30, 4096 }, short},
		"full disk that has all of it": {false, func(s *pool.Status) { s.Data.DiskFree = 4096 }, short},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := fakeConfig()
				config.MinFreePercent = 0
				b := newBench(t, config)
				b.layer(t, "layer", "", "content")
				b.prepare(t, "a", "layer")
				time.Sleep(time.Minute) // waits for spares
				var before pool.Status
				b.pool.SetStatus(func(s *pool.Status) { before = *s; c.during(s) })
				time.Sleep(c.long)
				b.pool.SetStatus(func(s *pool.Status) { *s = before })

				err := b.Commit(t.Context(), "done", "a")
				if c.lost {
					require.ErrorIs(t, err, errdefs.ErrDataLoss)
					require.ErrorContains(t, err, "pull or build it again")
					require.NoError(t, b.Close())
					b.openStore(t)
					require.NoError(t, b.start(t))
					require.ErrorIs(t, b.Commit(t.Context(), "done", "a"), metadata.ErrWritesLost, "after a restart")
					require.NoError(t, b.Remove(t.Context(), "a"))
				} else {
					require.NoError(t, err)
				}
				b.layer(t, "again", "layer", "again")
				require.Equal(t, "content", b.content(t, "layer"))
				require.Equal(t, "again", b.content(t, "again"))
			})
		})
	}
}

// Time in a synctest bubble begins in 2000. For a store of today the clock has gone back by decades, and
// for a store from the bubble it has gone forward.
func TestClockThatJumps(t *testing.T) {
	var b *bench
	work := func(t *testing.T, suffix, parent string) {
		b.layer(t, "layer"+suffix, parent, "content"+suffix)
		b.prepare(t, "active"+suffix, "layer"+suffix)
		require.NoError(t, b.Remove(t.Context(), "active"+suffix))
		require.Equal(t, "content"+suffix, b.content(t, "layer"+suffix))
		require.NoError(t, b.Cleanup(t.Context()))
	}
	b = newBench(t, fakeConfig())
	work(t, "-now", "")
	b.prepare(t, "across", "layer-now")
	require.NoError(t, b.Close())
	synctest.Test(t, func(t *testing.T) {
		b.openStore(t)
		require.NoError(t, b.start(t))
		work(t, "-then", "layer-now")
		require.NoError(t, b.Commit(t.Context(), "crossed", "across"))
		crossed, err := b.Stat(t.Context(), "crossed")
		require.NoError(t, err)
		then, err := b.Stat(t.Context(), "layer-then")
		require.NoError(t, err)
		require.Equal(t, 2000, then.Created.Year())
		require.True(t, crossed.Created.After(crossed.Updated) || crossed.Created.Equal(crossed.Updated))
		time.Sleep(time.Hour) // fires every timer
		work(t, "-later", "crossed")
		require.NoError(t, b.Close())
	})
	b.openStore(t)
	require.NoError(t, b.start(t))
	work(t, "-again", "layer-later")
	b.requireNoLeftovers(t)
	problems, err := b.store.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		trash, err := tx.TrashCount()
		require.Zero(t, trash)
		return err
	}))
}
