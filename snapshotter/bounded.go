package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/snapshotter/calllog"
)

const (
	// kernelWait bounds how long an operation waits for the kernel and the disk. A slow disk can take
	// minutes to write a large layer.
	kernelWait = 10 * time.Minute
	// fullWait is the same bound while the pool has no space left: the kernel then holds back writes, by
	// default for a minute, or without end (no_space_timeout).
	fullWait = 5 * time.Second
	// undoWait is how long runBounded waits, once the context has ended, for the operation to undo its
	// changes.
	undoWait = time.Second
	// closeWait bounds how long Close waits for operations that are stuck in the kernel.
	closeWait = 10 * time.Second
	// maxStuck is the number of operations without a caller at which new ones are refused. Each may occupy
	// a thread in the kernel. systemd limits threads (TasksMax), and Go ends a process that cannot create
	// a thread.
	maxStuck = 128
)

// errStuck is the cause of a context that ends after kernelWait.
var errStuck = fmt.Errorf("the kernel did not complete the operation within %v: "+
	"is a disk below the pool or the root directory hanging (see dmesg)? "+
	"Try again when it responds: %w", kernelWait, errdefs.ErrUnavailable)

// errTooManyStuck refuses operations that may get stuck too.
var errTooManyStuck = fmt.Errorf("%d operations wait for the kernel, although their callers have given up: "+
	"is a disk below the pool hanging (see dmesg)? Try again when it responds: %w", maxStuck, errdefs.ErrUnavailable)

// runInKernel is runBounded for an op that may get stuck in the kernel. It returns errTooManyStuck while
// maxStuck of these are stuck.
func runInKernel[T any](ctx context.Context, s *Snapshotter, op func(ctx context.Context) (T, error)) (T, error) {
	if s.stuck.Load() >= maxStuck {
		var none T
		return none, errTooManyStuck
	}
	return runBounded(ctx, s, op)
}

// runBounded calls op. It returns when op does, or soon after one of these: ctx ended, the pool was found
// full after fullWait, or kernelWait passed. An op that is stuck in the kernel continues in the background
// and keeps its locks. Its context has ended, so it undoes its changes.
func runBounded[T any](ctx context.Context, s *Snapshotter, op func(ctx context.Context) (T, error)) (T, error) {
	ctx, call := calllog.With(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(fullWait, func() { s.watchSlow(ctx, cancel) })
	defer watch.Stop()

	done := make(chan result[T], 1)
	ended, leftBehind := make(chan struct{}), false
	defer func() {
		if leftBehind {
			s.stuck.Add(1)
			go func() {
				<-ended
				s.stuck.Add(-1)
			}()
		}
	}()
	s.underway.Go(func() {
		defer close(ended)
		var r result[T]
		defer func() {
			if r.panicked = recover(); r.panicked != nil {
				log.G(ctx).WithField("stack", string(debug.Stack())).Errorf("panic: %v", r.panicked)
			}
			done <- r
		}()
		r.value, r.err = op(ctx)
		if errors.Is(r.err, pool.ErrNotActive) {
			if r.err = s.reopenPool(ctx, r.err); r.err == nil {
				r.value, r.err = op(ctx)
			}
		}
	})
	var r result[T]
	select {
	case r = <-done:
		return r.value, onDevice(call.Device(), r.outcome())
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	select {
	case r = <-done:
		if err := r.outcome(); errors.Is(err, ctx.Err()) && !errors.Is(err, cause) {
			r.err = cause
		}
	case <-time.After(undoWait):
		r.err, leftBehind = cause, true
	}
	return r.value, onDevice(call.Device(), r.err)
}

// errPanic stands for a panic in a part of an operation.
var errPanic = errors.New("panic")

type result[T any] struct {
	value    T
	err      error
	panicked any
}

// outcome returns the error. It repeats a panic in the caller's goroutine, where it can be recovered.
func (r result[T]) outcome() error {
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}

// onDevice adds the device, if known, to an error that is about devices.
func onDevice(device string, err error) error {
	if device == "" || err == nil {
		return err
	}
	if hasClass(err) && !errdefs.IsUnavailable(err) && !errdefs.IsResourceExhausted(err) && !errdefs.IsDataLoss(err) {
		return err
	}
	return fmt.Errorf("%s: %w", device, err)
}

// watchSlow is called for an operation that has taken fullWait. It cancels the operation when the pool is
// full, or when kernelWait has passed. Most operations end earlier, and need only one timer.
func (s *Snapshotter) watchSlow(ctx context.Context, cancel context.CancelCauseFunc) {
	stuck := time.AfterFunc(kernelWait-fullWait, func() { cancel(errStuck) })
	context.AfterFunc(ctx, func() { stuck.Stop() })
	s.cancelWhenFull(ctx, cancel)
}

// cancelWhenFull cancels an operation when the pool is full. Otherwise the operation is only slow.
func (s *Snapshotter) cancelWhenFull(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		status, err := s.askStatus(ctx)
		if err == nil && status.Mode == thin.ModeOutOfDataSpace {
			cancel(errFull)
			return
		}
		select {
		case <-time.After(fullWait):
		case <-ctx.Done():
			return
		}
	}
}

// askStatus returns the pool's status, or an error when ctx has ended. Only one caller at a time is in the
// kernel.
func (s *Snapshotter) askStatus(ctx context.Context) (pool.Status, error) {
	select {
	case s.asking <- struct{}{}:
	case <-ctx.Done():
		return pool.Status{}, context.Cause(ctx)
	}
	type answer struct {
		status pool.Status
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-s.asking }()
		status, err := s.pool.Status(ctx)
		answered <- answer{status, err}
	}()
	select {
	case a := <-answered:
		return a.status, a.err
	case <-ctx.Done():
		return pool.Status{}, context.Cause(ctx)
	}
}

func waitAtMost(group *sync.WaitGroup, most time.Duration) {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(most):
	}
}

// noteVolume sets the volume for the call's log lines and its error.
func (s *Snapshotter) noteVolume(ctx context.Context, id thin.ID) {
	calllog.SetDevice(ctx, s.pool.VolumePath(id))
}
