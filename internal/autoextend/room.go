package autoextend

import (
	"context"
	"time"
)

// roomWait limits a caller's wait in MakeRoom. LVM's programs, or the allocation of a part of a
// file, take a second or two.
const roomWait = 10 * time.Second

// MakeRoom extends the pool, within its limits and unless autoextend is disabled, until the given
// percentage of its data and of its metadata is free. It returns when that succeeded or failed, when
// ctx ends, or after ten seconds; the extension then continues. Concurrent callers share the
// extension of the first one.
func (e *Extender) MakeRoom(ctx context.Context, percent uint64) {
	timeout := time.NewTimer(roomWait)
	defer timeout.Stop()
	select {
	case <-e.startMaking(ctx, percent):
	case <-timeout.C:
	case <-ctx.Done():
	}
}

// startMaking starts an extension, unless one runs. Each attempt may run LVM's programs, so it
// starts none within retryInterval of a failure, except if other programs write to the disk below
// the pool. The channel is closed when no extension runs.
func (e *Extender) startMaking(ctx context.Context, percent uint64) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.making != nil {
		return e.making
	}
	done := make(chan struct{})
	if !e.watched && time.Since(e.noRoom) < retryInterval {
		close(done)
		return done
	}
	e.making = done
	// An extension continues without its caller, but not without the daemon.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	release := context.AfterFunc(e.running, cancel)
	go func() {
		defer cancel()
		defer release()
		stuck := e.makeRoom(ctx, percent)
		e.mu.Lock()
		defer e.mu.Unlock()
		if stuck {
			e.noRoom = time.Now()
		}
		e.making = nil
		close(done)
	}()
	return done
}

func (e *Extender) makeRoom(ctx context.Context, percent uint64) (stuck bool) {
	e.keepAllocated(ctx)
	wanted := e.growth
	if wanted.Threshold < 100 {
		wanted.Threshold = max(min(wanted.Threshold, 100-min(percent, 99)), 1)
	}
	why, _ := e.extendFor(ctx, wanted)
	return why != ""
}

// awaitRoom waits for the end of a running MakeRoom.
func (e *Extender) awaitRoom() {
	e.mu.Lock()
	making := e.making
	e.mu.Unlock()
	if making != nil {
		<-making
	}
}
