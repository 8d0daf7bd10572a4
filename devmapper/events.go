package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Events waits for events of all devices: a device is created or removed, a table is replaced, or a
// pool reaches its low water mark, fills up or recovers. It has a descriptor of its own, because
// poll(2) reports the events since the descriptor's open or last DM_DEV_ARM_POLL.
type Events struct {
	control *Control
	parent  *Control // counts the calls
}

// Events starts to record events for Wait.
func (c *Control) Events() (*Events, error) {
	own, err := Open()
	if err != nil {
		return nil, err
	}
	return &Events{control: own, parent: c}, nil
}

// Close ends a running Wait with os.ErrClosed.
func (e *Events) Close() error { return e.control.Close() }

// Wait returns after an event since the last Wait returned, or since Events was called. It does not
// say which event, so the caller must check. It blocks a goroutine but no thread. If ctx ends
// first, it returns ctx.Err(). Only one Wait may run at a time.
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
		return fmt.Errorf("wait for device-mapper events: %w", err)
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
		// DM_DEV_ARM_POLL precedes the caller's check, so that a later event ends the next Wait.
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
