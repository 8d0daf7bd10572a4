package snapshotter_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// TestResumeThatFails: the reaper retries a failed resume. Processes in the container wait for it, and a
// client may not call again.
func TestResumeThatFails(t *testing.T) {
	for name, then := range map[string]func(b *bench) error{
		"nothing": func(*bench) error { return nil },
		"removal": func(b *bench) error { return b.Remove(t.Context(), "a") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			dev := b.prepare(t, "a", "")
			id := b.volume(t, "a")
			require.NoError(t, b.pool.Open(dev, 1))
			var failures atomic.Int64
			b.pool.SetFault(func(method string, _ thin.ID) error {
				if method == "Resume" && failures.Add(1) <= 5 {
					return unix.EIO
				}
				return nil
			})
			require.Error(t, b.Commit(t.Context(), "layer", "a"))
			require.NoError(t, then(b))
			require.Eventually(t, func() bool {
				vol, err := b.pool.Lookup(t.Context(), id)
				return err == nil && !vol.Suspended
			}, 10*time.Second, time.Millisecond)
			require.NoError(t, b.pool.Open(dev, -1))
		})
	}
}

// TestCommitWithoutAStatus: Commit must know whether the pool fails writes.
func TestCommitWithoutAStatus(t *testing.T) {
	for _, method := range []string{"Status", "Active"} {
		t.Run(method, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.prepare(t, "a", "")
			if method == "Active" {
				b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadOnly })
			}
			b.pool.SetFault(func(m string, _ thin.ID) error {
				if m == method {
					return unix.EIO
				}
				return nil
			})
			require.ErrorIs(t, b.Commit(t.Context(), "layer", "a"), errdefs.ErrUnavailable)
			b.pool.SetFault(func(string, thin.ID) error { return nil })
			b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadWrite })
			_, err := b.Stat(t.Context(), "layer")
			require.ErrorIs(t, err, errdefs.ErrNotFound)
		})
	}
}

// TestCommitThatFailsLeavesItWritable: also if the Commit cannot undo its changes at once, or the daemon is
// killed during it.
func TestCommitThatFailsLeavesItWritable(t *testing.T) {
	for name, during := range map[string]func(method string) error{
		"at once": func(method string) error {
			if method == "Usage" || method == "Mapped" {
				return unix.EIO
			}
			return nil
		},
		"later": func() func(method string) error {
			var calls atomic.Int64
			return func(method string) error {
				if method == "Usage" || method == "Mapped" || method == "SetReadOnly" && calls.Add(1) == 2 {
					return unix.EIO
				}
				return nil
			}
		}(),
		"looked up": func() func(method string) error {
			var isFlushed atomic.Bool
			return func(method string) error {
				if method == "Flush" {
					isFlushed.Store(true)
				}
				if method == "Lookup" && isFlushed.CompareAndSwap(true, false) {
					return unix.EIO
				}
				return nil
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			dev := b.prepare(t, "a", "")
			b.pool.SetFault(func(method string, _ thin.ID) error { return during(method) })
			require.Error(t, b.Commit(t.Context(), "layer", "a"))
			require.Eventually(t, func() bool { return b.pool.Write(dev, "content") == nil }, 10*time.Second, time.Millisecond)
			b.pool.SetFault(func(string, thin.ID) error { return nil })
			require.NoError(t, b.Commit(t.Context(), "layer", "a"))
			require.Equal(t, "content", b.content(t, "layer"))
		})
	}
	t.Run("restart", func(t *testing.T) {
		b := newBench(t, fakeConfig())
		dev := b.prepare(t, unpackKey, "")
		require.NoError(t, b.pool.SetReadOnly(b.volume(t, unpackKey), true))
		b.restart(t, false)
		require.NoError(t, b.pool.Write(dev, "content"))
		require.NoError(t, b.Commit(t.Context(), "layer", unpackKey))
	})
}

// TestOpenedWhileItIsCommitted: a process that opens the device during a Commit could write to it.
func TestOpenedWhileItIsCommitted(t *testing.T) {
	for _, method := range []string{"SetReadOnly", "Flush"} {
		t.Run(method, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			dev := b.prepare(t, "a", "")
			id := b.volume(t, "a")
			require.NoError(t, b.pool.Write(dev, "content"))
			var once atomic.Bool
			b.pool.SetFault(func(m string, of thin.ID) error {
				if m == method && of == id && once.CompareAndSwap(false, true) {
					return b.pool.Open(dev, 1)
				}
				return nil
			})
			require.NoError(t, b.Commit(t.Context(), "layer", "a"))
			require.True(t, once.Load())
			require.NotEqual(t, id, b.volume(t, "layer"), "a copy is committed")
			require.NoError(t, b.pool.Write(dev, "later"))
			require.Equal(t, "content", b.content(t, "layer"))
			require.NoError(t, b.pool.Open(dev, -1))
		})
	}
}
