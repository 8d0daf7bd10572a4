package admin

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/check"
)

// ErrNotOpen is returned by a Backend while the daemon has not opened its pool. It is an
// errdefs.ErrUnavailable.
var ErrNotOpen = errdefs.ErrUnavailable.WithMessage("the pool is not open")

// Backend is the daemon behind the server. Its methods are called concurrently. Their errors have
// the classes of errdefs. Except for Check, Diff, ExtendPool, Trim, Fork, RemoveLeftover,
// AcceptClient, ResetClient and RemoveClient, they change nothing, and must not make the pool commit.
type Backend interface {
	// Info fills in everything but Daemon.
	Info(ctx context.Context) (Info, error)
	// Pool returns Info's pool alone.
	Pool(ctx context.Context) (Pool, error)
	// Snapshots returns all snapshots in any order, in a slice that the caller may change.
	// Without labels, it does not read them.
	Snapshots(ctx context.Context, labels bool) ([]Snapshot, error)
	// Owners returns what the snapshots belong to, in an answer that may be a few seconds old.
	Owners(ctx context.Context) (Owners, error)
	// Inspect describes one snapshot. It fails with errdefs.ErrNotFound if no snapshot has the key.
	Inspect(ctx context.Context, key string) (Inspection, error)
	// Diff lists what a snapshot changes in its parent.
	Diff(ctx context.Context, key string) (Difference, error)
	// Trash returns at most limit removed snapshots whose volumes are not deleted yet.
	Trash(ctx context.Context, limit int) ([]Removed, error)
	// Fill returns everything but At, from a status of the pool that is at most age old. It asks
	// the kernel only if there is no such status.
	Fill(ctx context.Context, age time.Duration) (Fill, error)
	// Check compares the store, the kernel and the pool. With repair, it repairs the problems that
	// can be repaired.
	Check(ctx context.Context, repair bool) (check.Report, error)
	// ExtendPool extends the pool, and returns its new description. A size below the present one is
	// errdefs.ErrInvalidArgument.
	ExtendPool(ctx context.Context, want Extension) (Pool, error)
	// Trim returns the freed blocks of a mounted active snapshot to the pool. It is
	// errdefs.ErrFailedPrecondition for any other snapshot. It trims one snapshot at a time.
	Trim(ctx context.Context, key string) (Trimming, error)
	// Fork lets one Prepare have the content of an active snapshot. It is errdefs.ErrFailedPrecondition for a snapshot
	// that cannot be forked.
	Fork(ctx context.Context, key string) (Fork, error)
	// Leftovers returns the volumes that the store does not know but that were written to, by id.
	Leftovers(ctx context.Context) ([]Leftover, error)
	// RemoveLeftover has one of them deleted in the background, and returns the others. It fails with
	// errdefs.ErrNotFound if there is none with the id.
	RemoveLeftover(ctx context.Context, id uint32) ([]Leftover, error)
	// AcceptClient lets a client remove the snapshots that were there before it, and returns its
	// description. It is errdefs.ErrFailedPrecondition if no process was the client, and
	// errdefs.ErrNotFound if no client with that name is configured.
	AcceptClient(ctx context.Context, name string) (StoreClient, error)
	// ResetClient forgets the process of a client, so that the next process can be the client.
	ResetClient(ctx context.Context, name string) (StoreClient, error)
	// RemoveClient removes all snapshots of a client, and the client. It is
	// errdefs.ErrFailedPrecondition if the client is configured, or one of the snapshots is in use.
	RemoveClient(ctx context.Context, name string) (RemovedClient, error)
	// Ioctls returns the number of device-mapper ioctls issued so far, by command.
	Ioctls() map[string]uint64
}
