package snapshotter_test

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// block makes every call of a method hang until release is called. The first call sets the pool's mode.
func (b *bench) block(method string, mode thin.Mode) (release func()) {
	released := make(chan struct{})
	b.pool.SetFault(func(m string, _ thin.ID) error {
		if m != method {
			return nil
		}
		select {
		case <-released:
		default:
			b.setMode(mode)
			<-released
		}
		return nil
	})
	return sync.OnceFunc(func() { close(released) })
}

func (b *bench) setMode(mode thin.Mode) { b.pool.SetStatus(func(s *pool.Status) { s.Mode = mode }) }

func took(f func()) time.Duration {
	begin := time.Now()
	f()
	return time.Since(begin)
}

// stuck has the calls of a Commit that can hang on a full pool, and the open count of the device with which
// it makes them.
var stuck = map[string]struct{ openers int }{
	"Flush":   {openers: 0},
	"Suspend": {openers: 1},
}

func TestCommitOnAFullPoolReturns(t *testing.T) {
	for method, how := range stuck {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, fakeConfig())
				dev := b.prepare(t, "a", "")
				b.layer(t, "other", "", "other")
				require.NoError(t, b.pool.Write(dev, "content"))
				require.NoError(t, b.pool.Open(dev, how.openers))
				release := b.block(method, thin.ModeOutOfDataSpace)
				defer release()

				var err error
				require.Less(t, took(func() { err = b.Commit(t.Context(), "layer", "a") }), 10*time.Second)
				require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
				require.ErrorContains(t, err, `commit snapshot "a"`)
				require.ErrorContains(t, err, "/dev/mapper/fake-snap-")
				require.ErrorContains(t, err, "remove snapshots, or make the pool larger")

				// A later operation on the snapshot waits until its context ends; those on others do not
				// wait.
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err = b.Mounts(ctx, "a")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, "other", b.content(t, "other"))

				b.setMode(thin.ModeReadWrite)
				release()
				_, err = b.Mounts(t.Context(), "a")
				require.NoError(t, err)
				active, err := b.pool.Active(t.Context())
				require.NoError(t, err)
				for _, vol := range active {
					require.False(t, vol.Suspended, "volume %d", vol.ID)
				}
				require.NoError(t, b.pool.Open(dev, -how.openers))
				require.NoError(t, b.Commit(t.Context(), "layer", "a"))
				require.Equal(t, "content", b.content(t, "layer"))
				b.requireNoLeftovers(t)
			})
		})
	}
}

// An operation that ends after its caller received an error is undone: the caller may try again.
func TestPrepareThatIsTooLateIsTakenBack(t *testing.T) {
	for name, c := range map[string]struct {
		mode  thin.Mode
		class error
	}{
		"full":     {thin.ModeOutOfDataSpace, errdefs.ErrResourceExhausted},
		"stuck":    {thin.ModeReadWrite, errdefs.ErrUnavailable},
		"given up": {thin.ModeReadWrite, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := fakeConfig()
				config.Spares = 0
				b := newBench(t, config)
				b.layer(t, "layer", "", "content")
				require.NoError(t, b.Cleanup(t.Context()))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if name == "given up" {
					time.AfterFunc(time.Second, cancel)
				}
				release := b.block("Activate", c.mode)
				_, err := b.Prepare(ctx, "a", "layer")
				require.ErrorIs(t, err, c.class)
				release()
				synctest.Wait()
				b.setMode(thin.ModeReadWrite)
				b.prepare(t, "a", "layer")
				b.requireNoLeftovers(t)
			})
		})
	}
}

// A slow disk is not an error; a hanging disk becomes one after kernelWait.
func TestHangingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, fakeConfig())
		b.prepare(t, "a", "")
		release := b.block("Flush", thin.ModeReadWrite)
		defer release()

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var err error
		require.Less(t, took(func() { err = b.Commit(ctx, "layer", "a") }), 62*time.Second)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		waited := took(func() { err = b.Commit(t.Context(), "layer", "a") })
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "is a disk below the pool or the root directory hanging")
		require.Less(t, waited, 11*time.Minute)
		require.Greater(t, waited, 9*time.Minute)
	})
}

// Removal is a background task: a caller that waits for it does not hang with it.
func TestCleanupDoesNotHang(t *testing.T) {
	for _, method := range []string{"Discard", "Deactivate", "Delete"} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, fakeConfig())
				b.layer(t, "layer", "", "content")
				release := b.block(method, thin.ModeReadWrite)
				defer release()
				require.NoError(t, b.Remove(t.Context(), "layer"))
				var err error
				waited := took(func() { err = b.Cleanup(t.Context()) })
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				require.ErrorContains(t, err, "hanging")
				require.Less(t, waited, 11*time.Minute)
				require.Greater(t, waited, 9*time.Minute)
				release()
				b.requireNoLeftovers(t)
			})
		})
	}
}

func TestSlowCommitSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, fakeConfig())
		b.prepare(t, "a", "")
		release := b.block("Flush", thin.ModeReadWrite)
		time.AfterFunc(3*time.Minute, release)
		require.NoError(t, b.Commit(t.Context(), "layer", "a"))
	})
}

func TestCloseDoesNotWaitForTheKernel(t *testing.T) {
	for _, method := range []string{"Discard", "Deactivate"} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, fakeConfig())
				b.layer(t, "layer", "", "content")
				release := b.block(method, thin.ModeReadWrite)
				require.NoError(t, b.Remove(t.Context(), "layer"))
				time.Sleep(5 * time.Second)
				require.Less(t, took(func() { require.NoError(t, b.Close()) }), 35*time.Second)
				release()
				synctest.Wait()
				b.restart(t, false)
				b.requireNoLeftovers(t)
			})
		})
	}
}

// The kernel reports a failed write only once: a second flush would find nothing left to write.
func TestCommitIsRefusedOnceAWriteHasFailed(t *testing.T) {
	for method, how := range stuck {
		t.Run(method, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			dev := b.prepare(t, "a", "")
			require.NoError(t, b.pool.Open(dev, how.openers))
			var once sync.Once
			b.pool.SetFault(func(m string, _ thin.ID) (err error) {
				if m == method {
					once.Do(func() { err = syscall.EIO })
				}
				return err
			})
			err := b.Commit(t.Context(), "layer", "a")
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			require.ErrorContains(t, err, "see dmesg")
			require.NoError(t, b.pool.Open(dev, -how.openers))
			for range 2 {
				err = b.Commit(t.Context(), "layer", "a")
				require.ErrorIs(t, err, errdefs.ErrDataLoss)
				require.ErrorContains(t, err, "pull or build it again")
			}
			require.ErrorIs(t, b.RequireWhole(t.Context(), "a"), errdefs.ErrDataLoss)
			require.NoError(t, b.Remove(t.Context(), "a"))
			require.NoError(t, b.RequireWhole(t.Context(), "a"))
			b.requireNoLeftovers(t)
		})
	}
}

func TestErrorsOfThePoolAreExplained(t *testing.T) {
	for name, c := range map[string]struct {
		mode       thin.Mode
		needsCheck bool
		err        error
		class      error
		says       string
	}{
		"full":         {thin.ModeOutOfDataSpace, false, syscall.EIO, errdefs.ErrResourceExhausted, "remove snapshots"},
		"read-only":    {thin.ModeReadOnly, false, syscall.EIO, errdefs.ErrUnavailable, "can still be read"},
		"needs check":  {thin.ModeReadOnly, true, thin.ErrPoolReadOnly, errdefs.ErrUnavailable, "thinsnap pool repair"},
		"failed":       {thin.ModeFail, false, syscall.EIO, errdefs.ErrUnavailable, "fix the disk below it"},
		"disk error":   {thin.ModeReadWrite, false, syscall.EIO, errdefs.ErrUnavailable, "fix the disk"},
		"disk full":    {thin.ModeReadWrite, false, syscall.ENOSPC, errdefs.ErrResourceExhausted, "make room on it"},
		"lost volume":  {thin.ModeReadWrite, false, thin.ErrNoDevice, errdefs.ErrDataLoss, "no such volume"},
		"foreign name": {thin.ModeReadWrite, false, pool.ErrNameTaken, errdefs.ErrDataLoss, "foreign mapped device"},
		"taken name":   {thin.ModeReadWrite, false, devmapper.ErrExists, errdefs.ErrDataLoss, "device exists"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.layer(t, "layer", "", "content")
			require.NoError(t, b.Cleanup(t.Context()))
			b.pool.SetStatus(func(s *pool.Status) { s.Mode, s.NeedsCheck = c.mode, c.needsCheck })
			b.pool.SetFault(func(method string, _ thin.ID) error {
				if method == "Activate" {
					return c.err
				}
				return nil
			})
			_, err := b.View(t.Context(), "view", "layer")
			require.ErrorIs(t, err, c.class)
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, `view snapshot "view"`)
			b.pool.SetFault(func(string, thin.ID) error { return nil })
			b.setMode(thin.ModeReadWrite)
		})
	}
}

// A process that ended during a stuck suspend left the volume suspended.
func TestStaleSuspensionIsUndone(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, "a", "")
	active, err := b.pool.Active(t.Context())
	require.NoError(t, err)
	for _, vol := range active {
		require.NoError(t, b.pool.Suspend(t.Context(), vol.ID))
	}
	mounts, err := b.Mounts(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, dev, mounts[0].Source)
	active, err = b.pool.Active(t.Context())
	require.NoError(t, err)
	for _, vol := range active {
		require.Equal(t, vol.Path != dev, vol.Suspended)
	}
}

// A panic in one call must not end the daemon for all others: the server recovers it.
func TestPanicReachesTheCaller(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "")
	b.during("Flush", func() error { panic("broken") })
	require.PanicsWithValue(t, "broken", func() { _ = b.Commit(t.Context(), "layer", "a") })
	require.NoError(t, b.Commit(t.Context(), "layer", "a"), "and leaves no lock behind")

	device := b.prepare(t, "open", "")
	require.NoError(t, b.pool.Open(device, 1))
	b.during("Flush", func() error { panic("broken") })
	require.Panics(t, func() { _ = b.Commit(t.Context(), "copy", "open") })
	require.NoError(t, b.pool.Open(device, -1))
	b.requireNoLeftovers(t)
}
