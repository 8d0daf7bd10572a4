package autoextend

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSpaceThatAnotherProgramTakes takes space between Largest and Extend.
func TestSpaceThatAnotherProgramTakes(t *testing.T) {
	for name, test := range map[string]struct{ left, size uint64 }{
		"all of it": {0, 100 * mib}, "a part": {10 * mib, 110 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, growth, func(t *testing.T, f *fake, e *Extender) {
				f.set(func(f *fake) {
					f.status.Data.Used, f.status.Data.Disk, f.disk, f.taken = 90*mib, 7, 200*mib, 100*mib-test.left
				})
				time.Sleep(2 * minInterval)
				require.Contains(t, e.Report().Stuck, "no space left on the disk below the pool: free some there, or remove snapshots")
				require.Equal(t, test.size, f.get().status.Data.Total)
			})
		})
	}
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		before := f.get().tries
		f.set(func(f *fake) { f.status.Data.Used, f.fail = 90*mib, errors.New("input/output error") })
		time.Sleep(2 * minInterval)
		require.Equal(t, "input/output error", e.Report().Stuck)
		require.Equal(t, before+1, f.get().tries, "no second attempt if the space is the same")
	})
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		before := f.get().tries
		f.set(func(f *fake) {
			f.status.Data.Used, f.disk, f.others, f.fail = 90*mib, 118*mib, 64<<10, errors.New("input/output error")
		})
		time.Sleep(2 * minInterval)
		require.Equal(t, "input/output error", e.Report().Stuck)
		require.Equal(t, before+2, f.get().tries, "one more attempt if the space has shrunk, and then the error itself")
	})
}

// TestRunThatFails breaks the events while LVM hangs in an extension of MakeRoom.
func TestRunThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.broken = make(chan error)
		e := New("thinsnap", f, growth)
		ended := make(chan error, 1)
		go func() { ended <- e.Run(t.Context(), f) }()
		time.Sleep(2 * minInterval)
		f.mu.Lock()
		f.status.Data.Used, f.held = 95*mib, make(chan struct{})
		f.mu.Unlock()
		go e.MakeRoom(t.Context(), 10)
		synctest.Wait()
		broken := errors.New("the kernel's events have failed")
		f.broken <- broken
		synctest.Wait()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, broken)
		default:
			t.Error("Run waits for the extension, and does not return its error")
			close(f.held)
		}
	})
}
