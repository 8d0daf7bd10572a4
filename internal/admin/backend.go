package admin

import (
	"context"
	"time"

	"github.com/thinsnap/thinsnap/internal/check"
)

// Backend is what the server reports on. Its methods are called concurrently. They return errors of the classes of
// errdefs, and, but for Check, ExtendPool and Trim, change nothing and must not wait for the pool to commit.
type Backend interface {
	// Info fills in everything but Daemon.
	Info(ctx context.Context) (Info, error)
	// Pool is Info's pool alone.
	Pool(ctx context.Context) (Pool, error)
	// Snapshots returns all snapshots in any order, in a slice that the caller may change.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// Inspect describes one snapshot; it is errdefs.ErrNotFound if there is none with this key.
	Inspect(ctx context.Context, key string) (Inspection, error)
	// Trash returns some of the removed snapshots that are to be deleted, no more than limit.
	Trash(ctx context.Context, limit int) ([]Removed, error)
	// Fill tells how full the pool was, no longer than age ago, and fills in everything but At. While that is known it costs
	// nothing.
	Fill(ctx context.Context, age time.Duration) (Fill, error)
	// Check holds the store, the kernel and the pool against each other, and with repair mends what can be mended.
	Check(ctx context.Context, repair bool) (check.Report, error)
	// ExtendPool makes the pool larger, and describes it then. A size that is smaller than the present one is
	// errdefs.ErrInvalidArgument.
	ExtendPool(ctx context.Context, want Extension) (Pool, error)
	// Trim gives what was deleted from an active snapshot that is mounted back to the pool; it is
	// errdefs.ErrFailedPrecondition for any other. It works on one snapshot at a time.
	Trim(ctx context.Context, key string) (Trimming, error)
	// Ioctls returns how many device-mapper ioctls were issued so far, by command.
	Ioctls() map[string]uint64
}
