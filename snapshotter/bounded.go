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
	// kernelWait bounds how long an operation waits for the kernel and the disk. A slow disk can
	// take minutes to write out a large layer.
	kernelWait = 10 * time.Minute
	// fullWait bounds the same while the pool has no space left: the kernel then holds writes back,
	// for a minute by default, or without end (no_space_timeout).
	fullWait = 5 * time.Second
	// undoWait is how long runBounded waits for an operation whose context has ended to undo its
	// changes.
	undoWait = time.Second
	// closeWait bounds how long Close waits for operations that are stuck in the kernel.
	closeWait = 10 * time.Second
	// maxStuck is the number of operations without a caller above which new ones are refused. Each
	// may be in the kernel, and take a thread: systemd limits these (TasksMax), and Go ends a process
	// that cannot have another.
	maxStuck = 128
)

// errStuck is the cause of the end of a context after kernelWait.
var errStuck = fmt.Errorf("the kernel did not complete the operation within %v: "+
	"is a disk below the pool or the root directory hanging (see dmesg)? "+
	"Try again when it responds: %w", kernelWait, errdefs.ErrUnavailable)

// errTooManyStuck refuses operations that may get stuck as well.
var errTooManyStuck = fmt.Errorf("%d operations wait for the kernel, although their callers have given up: "+
	"is a disk below the pool hanging (see dmesg)? Try again when it responds: %w", maxStuck, errdefs.ErrUnavailable)

// runInKernel is runBounded for an op that may get stuck in the kernel. It returns errTooManyStuck
// while too many are.
func runInKernel[T any](ctx context.Context, s *Snapshotter, op func(ctx context.Context) (T, error)) (T, error) {
	if s.stuck.Load() >= maxStuck {
		var none T
		return none, errTooManyStuck
	}
	return runBounded(ctx, s, op)
}

// runBounded calls op, and returns when op does, or soon after ctx has ended, the pool has had no
// space for fullWait, or kernelWait has passed. An op that is stuck in the kernel then goes on in
// the background, with the locks that it holds; since its context has ended, it undoes its changes.
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

// errPanic stands for the panic of a part of an operation.
var errPanic = errors.New("panic")

// result is the result of an operation.
type result[T any] struct {
	value    T
	err      error
	panicked any
}

// outcome returns the error. It continues a panic in the goroutine of the caller, who may recover
// it.
func (r result[T]) outcome() error {
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}

// onDevice names the device in an error that is about devices, if one is known.
func onDevice(device string, err error) error {
	if device == "" || err == nil {
		return err
	}
	if hasClass(err) && !errdefs.IsUnavailable(err) && !errdefs.IsResourceExhausted(err) && !errdefs.IsDataLoss(err) {
		return err
	}
	return fmt.Errorf("%s: %w", device, err)
}

// watchSlow cancels an operation that has taken fullWait when the pool is full, or when kernelWait has passed. Most
// operations end before, and need one timer.
func (s *Snapshotter) watchSlow(ctx context.Context, cancel context.CancelCauseFunc) {
	stuck := time.AfterFunc(kernelWait-fullWait, func() { cancel(errStuck) })
	context.AfterFunc(ctx, func() { stuck.Stop() })
	s.cancelWhenFull(ctx, cancel)
}

// cancelWhenFull cancels an operation when the pool is full; until then the operation is only slow.
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

// askStatus returns the pool's status, or an error when ctx has ended. Of all callers one is in the
// kernel at a time.
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

// waitAtMost waits for a group, up to the given time.
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

// noteVolume sets the volume that the call's log lines and error name.
func (s *Snapshotter) noteVolume(ctx context.Context, id thin.ID) {
	calllog.SetDevice(ctx, s.pool.VolumePath(id))
}
