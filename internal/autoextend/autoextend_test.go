package autoextend

import (
	"bytes"
	"context"
	"errors"
	"math"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const mib = 1 << 20

// fake is a pool with settable status and events.
type fake struct {
	mu      sync.Mutex
	status  pool.Status
	disk    uint64 // the size to which the data can grow
	taken   uint64 // taken from disk by another program between the next Largest and Extend
	others  uint64 // taken from disk by other programs before each Largest
	fail    error  // the error of Extend
	foreign bool   // a foreign pool
	watch   bool   // other programs write to its disk
	short   error  // the error of KeepAllocated
	// monitored is true if dmeventd extends the pool.
	monitored bool
	reads     int
	kept      int // calls of KeepAllocated
	tries     int // calls of Extend
	loads     int // successful calls of Extend
	happen    chan struct{}
	broken    chan error    // Wait fails with it
	held      chan struct{} // if not nil, Extend waits until it is closed or its context ends
}

func newFake() *fake {
	return &fake{
		happen:    make(chan struct{}, 1),
		disk:      math.MaxUint64,
		monitored: true,
		status: pool.Status{
			BlockBytes: 64 << 10,
			Data:       pool.Space{Total: 100 * mib},
			Metadata:   pool.Space{Total: 10 * mib},
			PoolStatus: thin.PoolStatus{Mode: thin.ModeReadWrite},
		},
	}
}

func (f *fake) Status(context.Context) (pool.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return f.status, nil
}

func (f *fake) Largest(context.Context) (data, metadata uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.foreign {
		return 0, 0, pool.ErrNotOurs
	}
	f.disk -= f.others
	return f.disk, math.MaxUint64, nil
}

func (f *fake) KeepAllocated(context.Context) (watch bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept++
	return f.watch, f.short
}

func (f *fake) Monitor(_ context.Context, on bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.monitored = on
	return nil
}

func (f *fake) Extend(ctx context.Context, data, metadata uint64) error {
	f.mu.Lock()
	f.tries++
	held := f.held
	f.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disk, f.taken = f.disk-f.taken, 0
	if f.fail != nil {
		return f.fail
	}
	if data > f.disk {
		return errors.New("lvextend: insufficient free space")
	}
	f.loads++
	f.status.Data.Total = max(f.status.Data.Total, data)
	f.status.Metadata.Total = max(f.status.Metadata.Total, metadata)
	return nil
}

func (f *fake) Wait(ctx context.Context) error {
	select {
	case <-f.happen:
		return nil
	case err := <-f.broken:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// set changes the pool and raises an event.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	change(f)
	f.mu.Unlock()
	select {
	case f.happen <- struct{}{}:
	default: // one pending event is enough
	}
}

func (f *fake) get() fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fake{status: f.status, reads: f.reads, kept: f.kept, tries: f.tries, loads: f.loads}
}

// run calls test while an Extender runs, in fake time.
func run(t *testing.T, growth pool.Growth, test func(t *testing.T, f *fake, e *Extender)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		e := New("thinsnap", f, growth)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx, f) }()
		time.Sleep(2 * minInterval)
		f.mu.Lock()
		require.False(t, f.monitored, "dmeventd also extends it")
		f.mu.Unlock()
		test(t, f, e)
		cancel()
		require.NoError(t, <-ended)
		require.True(t, f.monitored)
	})
}

var (
	growth = pool.Growth{Threshold: 80, Percent: 20}
	off    = pool.Growth{Threshold: 100, Percent: 20}
)

func TestForeignPoolIsOnlyReported(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) { f.foreign, f.fail = true, pool.ErrNotOurs })
		time.Sleep(2 * minInterval)
		require.Empty(t, e.Report().Stuck)
		f.set(func(f *fake) { f.status.Metadata.Used = 9 * mib })
		time.Sleep(2 * minInterval)
		require.Equal(t, "9MiB of 10MiB metadata used: "+pool.ErrNotOurs.Error(), e.Report().Stuck)
		require.ErrorIs(t, e.Extend(t.Context(), 0, 20*mib), pool.ErrNotOurs)
		// dmeventd extends it.
		f.set(func(f *fake) { f.status.Metadata.Total = 20 * mib })
		time.Sleep(2 * minInterval)
		require.Empty(t, e.Report().Stuck)
		require.EqualValues(t, 1, e.Report().MetadataExtensions)
	})
}

func TestPoolGrowsAfterEvent(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) { f.status.Data.Used = 79 * mib })
		time.Sleep(2 * minInterval)
		require.EqualValues(t, 100*mib, f.get().status.Data.Total)
		f.set(func(f *fake) { f.status.Data.Used = 80 * mib })
		time.Sleep(2 * minInterval)
		require.EqualValues(t, 120*mib, f.get().status.Data.Total)
		require.EqualValues(t, 10*mib, f.get().status.Metadata.Total)
		f.set(func(f *fake) { f.status.Metadata.Used = 9 * mib })
		time.Sleep(2 * minInterval)
		require.EqualValues(t, 12*mib, f.get().status.Metadata.Total)
		require.Equal(t, Report{Events: 3, DataExtensions: 1, MetadataExtensions: 1}, e.Report())
	})
}

func TestPoolGrowsSeveralSteps(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) {
			f.status.Data.Used = 100 * mib
			// The kernel's own low water mark is above the threshold here.
			f.status.Metadata.Used, f.status.MetadataLowWater = 15*mib/2, 5*mib/2/4096
		})
		time.Sleep(2 * minInterval)
		require.EqualValues(t, 144*mib, f.get().status.Data.Total)
		require.EqualValues(t, 12*mib, f.get().status.Metadata.Total)
		require.Equal(t, Report{Events: 1, DataExtensions: 1, MetadataExtensions: 1}, e.Report())
	})
}

func TestIdlePoolIsNotPolled(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, _ *Extender) {
		before := f.get().reads
		time.Sleep(24 * time.Hour)
		require.Equal(t, before, f.get().reads)
	})
}

func TestEventsAreThrottled(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, _ *Extender) {
		before := f.get().reads
		for range 1000 {
			f.set(func(*fake) {})
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, f.get().reads-before, 11)
	})
}

func TestStuckPoolIsRetried(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) { f.status.Data.Used, f.disk = 90*mib, 100*mib })
		time.Sleep(2 * minInterval)
		require.Contains(t, e.Report().Stuck, "90MiB of 100MiB data used")
		require.Contains(t, e.Report().Stuck, "no space left in the pool's volume group: add a disk to it, or remove snapshots")
		require.EqualValues(t, 100*mib, f.get().status.Data.Total)

		// Space is freed below the pool, which raises no event.
		f.mu.Lock()
		f.disk = 200 * mib
		f.mu.Unlock()
		time.Sleep(retryInterval)
		require.EqualValues(t, 120*mib, f.get().status.Data.Total)
		require.Empty(t, e.Report().Stuck)
	})
}

func TestLimitApplies(t *testing.T) {
	limited := growth
	limited.DataLimit = 110 * mib
	run(t, limited, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) { f.status.Data.Used = 90 * mib })
		time.Sleep(2 * minInterval)
		require.EqualValues(t, 110*mib, f.get().status.Data.Total)
		require.Contains(t, e.Report().Stuck, "limited to 110MiB: raise pool.loop.data_size")
		// The operator may exceed it.
		require.NoError(t, e.Extend(t.Context(), 200*mib, 0))
		require.EqualValues(t, 200*mib, f.get().status.Data.Total)
		require.Empty(t, e.Report().Stuck)
		f.set(func(f *fake) {
			f.status.Metadata = pool.Space{Total: pool.MaxMetadataBytes, Used: pool.MaxMetadataBytes}
		})
		time.Sleep(2 * minInterval)
		require.Contains(t, e.Report().Stuck, "limited to 15.88GiB: remove snapshots")
	})
}

func TestFailedExtensionIsRetried(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) { f.status.Data.Used, f.fail = 90*mib, errors.New("no space left on device") })
		time.Sleep(2 * minInterval)
		require.Contains(t, e.Report().Stuck, "no space left on device")
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		time.Sleep(retryInterval)
		require.Empty(t, e.Report().Stuck)
		require.EqualValues(t, 120*mib, f.get().status.Data.Total)
	})
}

func TestFailedPoolIsNotExtended(t *testing.T) {
	for _, mode := range []thin.Mode{thin.ModeReadOnly, thin.ModeFail, thin.ModeError} {
		run(t, growth, func(t *testing.T, f *fake, e *Extender) {
			f.set(func(f *fake) { f.status.Data.Used, f.status.Mode = 100*mib, mode })
			time.Sleep(time.Minute)
			require.EqualValues(t, 100*mib, f.get().status.Data.Total)
			require.Empty(t, e.Report().Stuck)
		})
	}
}

func TestAutoextendDisabled(t *testing.T) {
	run(t, off, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) {
			f.status.Data.Used, f.status.Mode = 100*mib, thin.ModeOutOfDataSpace
			f.status.Metadata.Used, f.status.MetadataLowWater = 10*mib, 1
		})
		time.Sleep(2 * minInterval)
		reads := f.get().reads
		time.Sleep(24 * time.Hour)
		require.Equal(t, reads, f.get().reads, "a full pool without autoextend is polled")
		require.EqualValues(t, 100*mib, f.get().status.Data.Total)
		require.EqualValues(t, 10*mib, f.get().status.Metadata.Total)
		require.Equal(t, Report{Events: 1}, e.Report())
		require.NoError(t, e.Extend(t.Context(), 150*mib, 20*mib))
		require.Equal(t, Report{Events: 1, DataExtensions: 1, MetadataExtensions: 1}, e.Report())
		// dmeventd extends it.
		f.set(func(f *fake) { f.status.Data.Total = 200 * mib })
		time.Sleep(2 * minInterval)
		require.Equal(t, Report{Events: 2, DataExtensions: 2, MetadataExtensions: 1}, e.Report())
	})
}

// TestStateChangesAreLogged: each state is logged once, also with autoextend disabled.
func TestStateChangesAreLogged(t *testing.T) {
	for name, growth := range map[string]pool.Growth{"grows": growth, "does not grow": off} {
		t.Run(name, func(t *testing.T) {
			var text bytes.Buffer
			logger := log.L.Logger
			out := logger.Out
			logger.SetOutput(&text)
			defer logger.SetOutput(out)
			states := func() (of []string) {
				synctest.Wait()
				for _, state := range regexp.MustCompile(`state=("[^"]*"|\S+)`).FindAllStringSubmatch(text.String(), -1) {
					of = append(of, strings.Trim(state[1], `"`))
				}
				return of
			}
			run(t, growth, func(t *testing.T, f *fake, _ *Extender) {
				require.Empty(t, states(), "a healthy pool logs nothing")
				f.set(func(f *fake) { f.status.Mode, f.status.NeedsCheck = thin.ModeReadOnly, true })
				time.Sleep(2 * minInterval)
				f.set(func(*fake) {})
				time.Sleep(2 * minInterval)
				f.set(func(f *fake) { f.status.Mode = thin.ModeFail })
				time.Sleep(2 * minInterval)
				f.set(func(f *fake) { f.status.Mode, f.status.NeedsCheck = thin.ModeReadWrite, false })
				time.Sleep(2 * minInterval)
				require.Equal(t, []string{"ro, needs_check", "Fail, needs_check", "rw"}, states())
			})
		})
	}
}

func TestInvalidSizesAreRefused(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		for _, want := range [][2]uint64{{99 * mib, 0}, {0, 9 * mib}, {200 * mib, 9 * mib}, {0, pool.MaxMetadataBytes + 1}} {
			require.ErrorIs(t, e.Extend(t.Context(), want[0], want[1]), errdefs.ErrInvalidArgument, "%v", want)
		}
		require.NoError(t, e.Extend(t.Context(), 100*mib, 10*mib), "the present sizes")
		require.Equal(t, Report{}, e.Report())
		require.EqualValues(t, 100*mib, f.get().status.Data.Total)
	})
}

// TestDiskIsWatched: a disk that other programs fill is read every second, and a pool that was
// stuck grows within two seconds of new space.
func TestDiskIsWatched(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.set(func(f *fake) { f.watch = true })
		time.Sleep(2 * minInterval)
		before := f.get()
		time.Sleep(time.Minute)
		require.InDelta(t, 60, f.get().kept-before.kept, 2)
		require.Equal(t, before.reads, f.get().reads, "the pool's status is read after events only")

		f.set(func(f *fake) {
			f.status.Data.Used, f.status.Data.Disk, f.disk, f.short = 90*mib, 7, 100*mib, errors.New("no space for the holes")
		})
		time.Sleep(3 * minInterval)
		require.Contains(t, e.Report().Stuck, "no space left on the disk below the pool")
		require.Equal(t, "no space for the holes", e.Report().Unallocated)
		f.mu.Lock()
		f.disk, f.short = 200*mib, nil
		f.mu.Unlock()
		time.Sleep(2 * minInterval)
		require.EqualValues(t, 120*mib, f.get().status.Data.Total)
		require.Empty(t, e.Report().Stuck)
		require.Empty(t, e.Report().Unallocated)
	})
}

// TestFullPoolWithFreeBlocksIsLoadedAgain: the kernel does not resume such a pool by itself.
func TestFullPoolWithFreeBlocksIsLoadedAgain(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		before := f.get().loads
		f.set(func(f *fake) {
			f.status.DataUsed, f.status.DataTotal, f.status.Mode = 50, 100, thin.ModeOutOfDataSpace
		})
		time.Sleep(2 * minInterval)
		require.Equal(t, before+1, f.get().loads)
		time.Sleep(retryInterval)
		require.Equal(t, before+2, f.get().loads, "the load is not repeated until the pool is writable")
		f.set(func(f *fake) { f.status.Mode = thin.ModeReadWrite })
		time.Sleep(time.Hour)
		require.LessOrEqual(t, f.get().loads, before+3)
		require.EqualValues(t, 100*mib, f.get().status.Data.Total)
		require.Empty(t, e.Report().Stuck)
	})
}

// TestMakeRoom: a caller that needs space gets it at once, also below the threshold.
func TestMakeRoom(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.mu.Lock()
		f.status.Data.Used = 75 * mib
		f.mu.Unlock()
		e.MakeRoom(t.Context(), 10)
		require.EqualValues(t, 100*mib, f.get().status.Data.Total, "20% are free")
		e.MakeRoom(t.Context(), 30)
		require.EqualValues(t, 120*mib, f.get().status.Data.Total)

		// A stuck pool is not retried at once, unless its disk is watched.
		f.mu.Lock()
		f.status.Data.Used, f.disk = 119*mib, 120*mib
		f.mu.Unlock()
		e.MakeRoom(t.Context(), 10)
		reads := f.get().reads
		e.MakeRoom(t.Context(), 10)
		require.Equal(t, reads, f.get().reads)
		time.Sleep(retryInterval)
		e.MakeRoom(t.Context(), 10)
		require.Greater(t, f.get().reads, reads)
	})
	run(t, off, func(t *testing.T, f *fake, e *Extender) {
		f.mu.Lock()
		f.status.Data.Used = 99 * mib
		f.mu.Unlock()
		e.MakeRoom(t.Context(), 10)
		require.EqualValues(t, 100*mib, f.get().status.Data.Total, "autoextend is disabled")
	})
}

// TestMakeRoomIsShared: one extension serves all callers, and none waits longer than its context or
// roomWait.
func TestMakeRoomIsShared(t *testing.T) {
	run(t, growth, func(t *testing.T, f *fake, e *Extender) {
		f.mu.Lock()
		f.status.Data.Used, f.held = 95*mib, make(chan struct{})
		before := f.tries
		f.mu.Unlock()
		begun := time.Now()
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() { e.MakeRoom(t.Context(), 10) })
		}
		synctest.Wait()
		ending, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e.MakeRoom(ending, 10)
		require.Equal(t, time.Second, time.Since(begun))
		callers.Wait()
		require.Equal(t, roomWait, time.Since(begun))
		require.Equal(t, before+1, f.get().tries)

		// The extension continues without them, and the next caller waits for its end.
		callers.Go(func() { e.MakeRoom(t.Context(), 10) })
		synctest.Wait()
		close(f.held)
		callers.Wait()
		require.EqualValues(t, 120*mib, f.get().status.Data.Total)
		require.Equal(t, before+1, f.get().tries)
	})
}

// TestMakeRoomEndsWithRun: a stopped daemon leaves no extension behind.
func TestMakeRoomEndsWithRun(t *testing.T) {
	var e *Extender
	var f *fake
	run(t, growth, func(t *testing.T, of *fake, extender *Extender) {
		e, f = extender, of
		f.mu.Lock()
		f.status.Data.Used, f.held = 95*mib, make(chan struct{})
		f.mu.Unlock()
		go e.MakeRoom(t.Context(), 10)
		synctest.Wait()
		require.NotZero(t, f.get().tries)
	})
	require.EqualValues(t, 100*mib, f.get().status.Data.Total)
}
