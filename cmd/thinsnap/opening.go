package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/daemon"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// firstWait is the time, from the daemon's start, in which calls wait for the first attempt to
	// open the pool. containerd makes some calls inside a transaction of its database, which blocks
	// the calls to all snapshotters.
	firstWait = 10 * time.Second
	// leastPause and mostPause are the shortest and the longest pause between two attempts. The
	// pause doubles each time, because an attempt may run programs.
	leastPause = time.Second
	mostPause  = time.Minute
)

// opening opens the snapshotter, and retries until it is open. The servers run meanwhile.
type opening struct {
	open func(context.Context) (*service, error)
	// patient has the daemon retry even if the first attempt finds the root locked, perhaps by a
	// repair. It is set if systemd started the daemon: systemd would start it again if it ended.
	patient bool

	begun  time.Time
	tried  chan struct{} // closed after the first attempt
	failed chan error    // receives the error that ends the process
	ended  chan struct{} // closed after the last attempt
	cancel context.CancelFunc
	last   atomic.Pointer[attempt] // nil before the end of the first attempt
}

type attempt struct {
	service *service
	err     error
}

func newOpening(open func(context.Context) (*service, error)) *opening {
	return &opening{
		open: open, begun: time.Now(), tried: make(chan struct{}), failed: make(chan error, 1), ended: make(chan struct{}),
	}
}

// start starts the attempts. It calls report after each that does not end the daemon. close ends
// the attempts.
func (o *opening) start(ctx context.Context, report func(err error)) {
	ctx, o.cancel = context.WithCancel(ctx)
	go func() {
		defer close(o.ended)
		for pause := leastPause; !o.try(ctx, report); pause = min(2*pause, mostPause) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
		}
	}()
}

// try makes an attempt, and reports whether it was the last one.
func (o *opening) try(ctx context.Context, report func(err error)) (done bool) {
	sv, err := o.openSafely(ctx)
	before := o.last.Swap(&attempt{sv, err})
	if before == nil {
		defer close(o.tried)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return true
	case err != nil && (daemon.IsFinal(err) || before == nil && !o.patient && errors.Is(err, metadata.ErrLocked)):
		o.failed <- err
		return true
	case err != nil && (before == nil || before.err.Error() != err.Error()):
		log.G(ctx).WithError(err).Error("the pool is not open, retrying until it is")
	}
	report(err)
	return err == nil
}

// openSafely calls open, and returns a panic as an error: without the daemon, containerd could not
// unpack for other snapshotters.
func (o *opening) openSafely(ctx context.Context) (sv *service, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
			sv, err = nil, fmt.Errorf("panic while opening the pool: %v", p)
		}
	}()
	return o.open(ctx)
}

// close ends the attempts, and closes what the last one opened. An attempt that hangs in the kernel
// ends with the process.
func (o *opening) close() error {
	if o.cancel == nil {
		return nil
	}
	o.cancel()
	select {
	case <-o.ended:
	case <-time.After(stopTime):
		log.L.Warn("an attempt to open the pool hangs in the kernel, ending without it: see dmesg")
		return nil
	}
	if last := o.last.Load(); last != nil && last.service != nil {
		return last.service.close()
	}
	return nil
}

// get returns the open snapshotter, or admin.ErrNotOpen with the reason.
func (o *opening) get() (*service, error) {
	last := o.last.Load()
	switch {
	case last == nil:
		return nil, fmt.Errorf("%w yet: thinsnap has just started; try again", admin.ErrNotOpen)
	case last.err != nil:
		return nil, fmt.Errorf("%w: %s; thinsnap retries until it is", admin.ErrNotOpen, oneLine(last.err))
	}
	return last.service, nil
}

// await calls get after the first attempt, or after firstWait.
func (o *opening) await(ctx context.Context) (*service, error) {
	if o.last.Load() == nil {
		limit := time.NewTimer(time.Until(o.begun.Add(firstWait)))
		defer limit.Stop()
		select {
		case <-o.tried:
		case <-limit.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return o.get()
}
