package admin

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/check"
)

// ErrNotOpen is returned by a Backend while the daemon has not opened its pool. It matches
// errdefs.ErrUnavailable.
var ErrNotOpen = errdefs.ErrUnavailable.WithMessage("the pool is not open")

// Backend is the daemon behind the server. Its methods are called concurrently. Their errors have
// the classes of errdefs. Check commits the pool's metadata, to read it; so does Diff, which may make
// frozen copies. ExtendPool, Trim, Fork, RemoveLeftover, AcceptClient, ResetClient, RemoveClient, and
// Check with repair make changes. The other methods change nothing and must not commit the metadata.
type Backend interface {
	// Info fills in all fields except Daemon.
	Info(ctx context.Context) (Info, error)
	// Pool returns the pool's part of Info.
	Pool(ctx context.Context) (Pool, error)
	// Snapshots returns all snapshots in any order, in a slice that the caller may change. It reads
	// the labels only if labels is set.
	Snapshots(ctx context.Context, labels bool) ([]Snapshot, error)
	// Owners returns the owners of the snapshots. The answer may be a few seconds old.
	Owners(ctx context.Context) (Owners, error)
	// Inspect describes one snapshot. It fails with errdefs.ErrNotFound if no snapshot has the key.
	Inspect(ctx context.Context, key string) (Inspection, error)
	// Diff lists the changes of a snapshot to its parent.
	Diff(ctx context.Context, key string) (Difference, error)
	// Trash returns at most limit removed snapshots whose volumes are not deleted yet.
	Trash(ctx context.Context, limit int) ([]Removed, error)
	// Fill returns all fields except At, from a status of the pool that is at most age old. It asks
	// the kernel only if it has no such status.
	Fill(ctx context.Context, age time.Duration) (Fill, error)
	// Check compares the store, the kernel and the pool. With repair, it repairs the problems that
	// can be repaired.
	Check(ctx context.Context, repair bool) (check.Report, error)
	// ExtendPool extends the pool, and returns its new description. A size below the present one
	// fails with errdefs.ErrInvalidArgument.
	ExtendPool(ctx context.Context, want Extension) (Pool, error)
	// Trim returns the freed blocks of a mounted active snapshot to the pool. Any other snapshot
	// fails with errdefs.ErrFailedPrecondition. It trims one snapshot at a time.
	Trim(ctx context.Context, key string) (Trimming, error)
	// Fork lets one Prepare have the content of an active snapshot. It fails with
	// errdefs.ErrFailedPrecondition for a snapshot that cannot be forked.
	Fork(ctx context.Context, key string) (Fork, error)
	// Leftovers returns the kept leftovers, sorted by id.
	Leftovers(ctx context.Context) ([]Leftover, error)
	// RemoveLeftover deletes a kept leftover in the background, and returns the others. It fails
	// with errdefs.ErrNotFound if none has the id.
	RemoveLeftover(ctx context.Context, id uint32) ([]Leftover, error)
	// AcceptClient lets a client remove the snapshots of earlier clients, and returns its
	// description. It fails with errdefs.ErrFailedPrecondition if no process was the client, and
	// with errdefs.ErrNotFound if no client with that name is configured.
	AcceptClient(ctx context.Context, name string) (ClientInfo, error)
	// ResetClient forgets the process of a client. The next process that calls becomes the client.
	ResetClient(ctx context.Context, name string) (ClientInfo, error)
	// RemoveClient removes a client with all its snapshots. It fails with
	// errdefs.ErrFailedPrecondition if the client is configured, or if a snapshot is in use.
	RemoveClient(ctx context.Context, name string) (RemovedClient, error)
	// Ioctls returns the number of device-mapper ioctls issued so far, by command.
	Ioctls() map[string]uint64
}
