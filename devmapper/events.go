package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Events waits for something to happen to any device: one made or removed, a
// table exchanged, a pool at its low water mark, full, or recovered. It has a
// control device of its own, because arming is a state of the descriptor.
type Events struct {
	control *Control
	parent  *Control // counts the calls
}

// Events starts to watch; what happens from now on ends a Wait.
func (c *Control) Events() (*Events, error) {
	// Opening arms the descriptor.
	own, err := Open()
	if err != nil {
		return nil, err
	}
	return &Events{control: own, parent: c}, nil
}

// Close stops watching, and ends a Wait under way with os.ErrClosed.
func (e *Events) Close() error { return e.control.Close() }

// Wait returns when something has happened since the last Wait returned, or
// since Events was called. What, is not told: the caller looks. Nothing is
// lost between two calls. It parks a goroutine and no thread. Its error is
// ctx.Err() when ctx ends first. Only one Wait may be under way.
func (e *Events) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		_ = e.control.file.SetReadDeadline(time.Unix(1, 0))
	})
	err := e.wait()
	if !stop() {
		<-cancelled
		_ = e.control.file.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("waiting for device-mapper events: %w", err)
	}
	return nil
}

func (e *Events) wait() error {
	conn, err := e.control.file.SyscallConn()
	if err != nil {
		return err
	}
	var problem error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			problem = err
			return true
		}
		if n <= 0 {
			return false
		}
		// Armed before the caller looks, so that an event after its look
		// is told by the next Wait.
		e.parent.calls[opArmPoll].Add(1)
		if errno := ioctl(fd, opArmPoll, encodeRequest(header{}, nil, headerSize)); errno != 0 {
			problem = newError(opArmPoll, "", errno)
		}
		return true
	})
	if err != nil {
		return e.control.orClosed(err)
	}
	return problem
}
