package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/check"
)

// changeGrace is how long a change may continue after its context has ended, to undo its first
// steps.
const changeGrace = 10 * time.Second

// bounded is a Backend whose methods below return soon after their context has ended, even if an
// ioctl, which ignores contexts, hangs. A stuck call continues in the background and keeps its turn,
// so the number of stuck goroutines is limited.
type bounded struct {
	Backend
	info, pool, snapshots, inspect, diff, trash, check, extend, trim, fork turns
	leftovers, owners, decision, removal                                   turns
}

// turns limits the concurrent calls.
type turns chan struct{}

func newBounded(backend Backend) *bounded {
	return &bounded{
		Backend: backend,
		info:    make(turns, 1), pool: make(turns, 1), snapshots: make(turns, 1), trash: make(turns, 1),
		inspect: make(turns, 8), // one hanging volume must not block the others
		diff:    make(turns, 2),
		check:   make(turns, 1), extend: make(turns, 1), trim: make(turns, 8), fork: make(turns, 8),
		leftovers: make(turns, 1), owners: make(turns, 1), decision: make(turns, 1), removal: make(turns, 1),
	}
}

// Info implements Backend.
func (b *bounded) Info(ctx context.Context) (Info, error) {
	return inTurn(ctx, b.info, 0, b.Backend.Info)
}

// Pool implements Backend.
func (b *bounded) Pool(ctx context.Context) (Pool, error) {
	return inTurn(ctx, b.pool, 0, b.Backend.Pool)
}

// Snapshots implements Backend.
func (b *bounded) Snapshots(ctx context.Context, labels bool) ([]Snapshot, error) {
	return inTurn(ctx, b.snapshots, 0, func(ctx context.Context) ([]Snapshot, error) {
		return b.Backend.Snapshots(ctx, labels)
	})
}

// Owners implements Backend.
func (b *bounded) Owners(ctx context.Context) (Owners, error) {
	return inTurn(ctx, b.owners, 0, b.Backend.Owners)
}

// Inspect implements Backend.
func (b *bounded) Inspect(ctx context.Context, key string) (Inspection, error) {
	return inTurn(ctx, b.inspect, 0, func(ctx context.Context) (Inspection, error) {
		return b.Backend.Inspect(ctx, key)
	})
}

// Diff implements Backend.
func (b *bounded) Diff(ctx context.Context, key string) (Difference, error) {
	return inTurn(ctx, b.diff, changeGrace, func(ctx context.Context) (Difference, error) {
		return b.Backend.Diff(ctx, key)
	})
}

// Trash implements Backend.
func (b *bounded) Trash(ctx context.Context, limit int) ([]Removed, error) {
	return inTurn(ctx, b.trash, 0, func(ctx context.Context) ([]Removed, error) { return b.Backend.Trash(ctx, limit) })
}

// Check implements Backend.
func (b *bounded) Check(ctx context.Context, repair bool) (check.Report, error) {
	return inTurn(ctx, b.check, changeGrace, func(ctx context.Context) (check.Report, error) {
		return b.Backend.Check(ctx, repair)
	})
}

// ExtendPool implements Backend.
func (b *bounded) ExtendPool(ctx context.Context, want Extension) (Pool, error) {
	return inTurn(ctx, b.extend, changeGrace, func(ctx context.Context) (Pool, error) {
		return b.Backend.ExtendPool(ctx, want)
	})
}

// Trim implements Backend.
func (b *bounded) Trim(ctx context.Context, key string) (Trimming, error) {
	return inTurn(ctx, b.trim, changeGrace, func(ctx context.Context) (Trimming, error) {
		return b.Backend.Trim(ctx, key)
	})
}

// Fork implements Backend.
func (b *bounded) Fork(ctx context.Context, key string) (Fork, error) {
	return inTurn(ctx, b.fork, 0, func(ctx context.Context) (Fork, error) { return b.Backend.Fork(ctx, key) })
}

// Leftovers implements Backend.
func (b *bounded) Leftovers(ctx context.Context) ([]Leftover, error) {
	return inTurn(ctx, b.leftovers, 0, b.Backend.Leftovers)
}

// RemoveLeftover implements Backend.
func (b *bounded) RemoveLeftover(ctx context.Context, id uint32) ([]Leftover, error) {
	return inTurn(ctx, b.leftovers, changeGrace, func(ctx context.Context) ([]Leftover, error) {
		return b.Backend.RemoveLeftover(ctx, id)
	})
}

// AcceptClient implements Backend.
func (b *bounded) AcceptClient(ctx context.Context, name string) (ClientInfo, error) {
	return inTurn(ctx, b.decision, changeGrace, func(ctx context.Context) (ClientInfo, error) {
		return b.Backend.AcceptClient(ctx, name)
	})
}

// ResetClient implements Backend.
func (b *bounded) ResetClient(ctx context.Context, name string) (ClientInfo, error) {
	return inTurn(ctx, b.decision, changeGrace, func(ctx context.Context) (ClientInfo, error) {
		return b.Backend.ResetClient(ctx, name)
	})
}

// RemoveClient implements Backend.
func (b *bounded) RemoveClient(ctx context.Context, name string) (RemovedClient, error) {
	return inTurn(ctx, b.removal, changeGrace, func(ctx context.Context) (RemovedClient, error) {
		return b.Backend.RemoveClient(ctx, name)
	})
}

// inTurn calls op in a goroutine when it gets a turn. It returns when op does, or grace after ctx
// has ended, with an error that matches errdefs.ErrUnavailable.
func inTurn[T any](
	ctx context.Context, turn turns, grace time.Duration, op func(context.Context) (T, error),
) (T, error) {
	type result struct {
		value    T
		err      error
		panicked any
	}
	var none T
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return none, unanswered(ctx)
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			r.panicked = recover()
			<-turn
			done <- r
		}()
		r.value, r.err = op(ctx)
	}()
	outcome := func(r result) (T, error) {
		if r.panicked != nil {
			panic(r.panicked) // in the request's goroutine, where net/http recovers it
		}
		return r.value, r.err
	}
	select {
	case r := <-done:
		return outcome(r)
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return outcome(r)
	case <-time.After(grace):
		return none, unanswered(ctx)
	}
}

func unanswered(ctx context.Context) error {
	return fmt.Errorf("the kernel did not answer in time (%w): is a disk below the pool or the root directory hanging "+
		"(see dmesg)? The operation continues until the kernel answers: %w", ctx.Err(), errdefs.ErrUnavailable)
}
