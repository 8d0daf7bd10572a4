package bulk

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// baseUUID is the UUID of every file system, because all are copies of one.
const baseUUID = "0f0e0d0c-1111-2222-3333-444455556666"

// Pool is a pool whose operations take no time and no space, with the file systems on its volumes.
// Its methods may be called concurrently.
type Pool struct {
	mu          sync.Mutex
	active      map[thin.ID]bool // true: read-only
	transaction uint64
}

// NewPool returns the pool of a store with the given transaction id.
func NewPool(transaction uint64) *Pool {
	return &Pool{active: make(map[thin.ID]bool), transaction: transaction}
}

// CreateThin does nothing.
func (p *Pool) CreateThin(ctx context.Context, _ thin.ID) error { return ctx.Err() }

// CreateSnap does nothing.
func (p *Pool) CreateSnap(ctx context.Context, _, _ thin.ID) error { return ctx.Err() }

// Delete does nothing.
func (p *Pool) Delete(ctx context.Context, _ thin.ID) error { return ctx.Err() }

// Volumes returns no volumes, so that every device id can be used for a new one.
func (p *Pool) Volumes(ctx context.Context, _, _ thin.ID) (map[thin.ID]bool, error) {
	return nil, ctx.Err()
}

// Writes returns no writes.
func (p *Pool) Writes(ctx context.Context, _ thin.ID) (thinmeta.Writes, error) {
	return thinmeta.Writes{}, ctx.Err()
}

// Twins returns no volumes.
func (p *Pool) Twins(ctx context.Context, _ thin.ID) ([]thin.ID, error) { return nil, ctx.Err() }

// Time returns the time of a new pool.
func (p *Pool) Time(ctx context.Context) (uint32, error) { return 0, ctx.Err() }

// SetTransactionID changes the transaction id of the status.
func (p *Pool) SetTransactionID(ctx context.Context, _, to uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.transaction = to
	return ctx.Err()
}

// Status returns the status of an empty pool.
func (p *Pool) Status(ctx context.Context) (pool.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const data, metadata = 100 << 40, 16 << 30
	return pool.Status{
		Data:       pool.Space{Total: data, Available: data},
		Metadata:   pool.Space{Total: metadata, Available: metadata},
		BlockBytes: BlockBytes,
		PoolStatus: thin.PoolStatus{TransactionID: p.transaction, Mode: thin.ModeReadWrite, Asked: time.Now()},
	}, ctx.Err()
}

// RecentStatus returns the same as Status.
func (p *Pool) RecentStatus(ctx context.Context, _ time.Duration) (pool.Status, error) {
	return p.Status(ctx)
}

// CachedStatus returns the same as Status.
func (p *Pool) CachedStatus(ctx context.Context, _ time.Duration) (pool.Status, error) {
	return p.Status(ctx)
}

// IsActive returns true for every volume, active or not.
func (p *Pool) IsActive(thin.ID) bool { return true }

// VolumePath returns a path that does not exist.
func (p *Pool) VolumePath(id thin.ID) string { return fmt.Sprintf("/dev/mapper/bulk-snap-%d", id) }

// Activate activates a volume.
func (p *Pool) Activate(ctx context.Context, id thin.ID, _ uint64, readOnly bool) (pool.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active[id] = readOnly
	return p.volume(id), ctx.Err()
}

// Deactivate deactivates a volume.
func (p *Pool) Deactivate(ctx context.Context, id thin.ID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.active, id)
	return ctx.Err()
}

// Lookup returns an active volume, or devmapper.ErrNotFound.
func (p *Pool) Lookup(ctx context.Context, id thin.ID) (pool.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, active := p.active[id]; !active {
		return pool.Volume{}, devmapper.ErrNotFound
	}
	return p.volume(id), ctx.Err()
}

// Active returns the active volumes.
func (p *Pool) Active(ctx context.Context) ([]pool.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []pool.Volume
	for id := range p.active {
		all = append(all, p.volume(id))
	}
	return all, ctx.Err()
}

func (p *Pool) volume(id thin.ID) pool.Volume {
	return pool.Volume{ID: id, Path: p.VolumePath(id), ReadOnly: p.active[id]}
}

// Suspend does nothing.
func (p *Pool) Suspend(ctx context.Context, _ thin.ID) error { return ctx.Err() }

// Resume does nothing.
func (p *Pool) Resume(thin.ID) error { return nil }

// SetReadOnly does nothing.
func (p *Pool) SetReadOnly(thin.ID, bool) error { return nil }

// Flush does nothing.
func (p *Pool) Flush(ctx context.Context, _ thin.ID) error { return ctx.Err() }

// Discard does nothing.
func (p *Pool) Discard(ctx context.Context, _ thin.ID, _ blockdev.Turn) error { return ctx.Err() }

// Mapped returns the size of a block, or devmapper.ErrNotFound for an inactive volume.
func (p *Pool) Mapped(ctx context.Context, id thin.ID) (uint64, error) {
	_, err := p.Lookup(ctx, id)
	return BlockBytes, err
}

// Usage returns one block, not shared, for every volume.
func (p *Pool) Usage(ctx context.Context, _, _ thin.ID, _ time.Duration) (pool.Usage, error) {
	return pool.Usage{Mapped: BlockBytes, Own: BlockBytes}, ctx.Err()
}

// Exclusive returns one block for every volume.
func (p *Pool) Exclusive(ctx context.Context, _ thin.ID, _ ...thin.ID) (uint64, error) {
	return BlockBytes, ctx.Err()
}

// Make does nothing, because every volume has a file system.
func (p *Pool) Make(ctx context.Context, _, _ string, _ []string) error { return ctx.Err() }

// Identify returns the superblock of every file system.
func (p *Pool) Identify(string) (filesystem.Superblock, error) {
	return filesystem.Superblock{Type: filesystem.Ext4, UUID: baseUUID, Bytes: BaseBytes, BlockBytes: 4096,
		Inodes: 11}, nil
}

// Grow does nothing.
func (p *Pool) Grow(string, string, uint64) error { return nil }

// Recover does nothing.
func (p *Pool) Recover(string, string) error { return nil }

// Verify does nothing.
func (p *Pool) Verify(string, string) error { return nil }

// Sync does nothing.
func (p *Pool) Sync(string, string) error { return nil }

// Inodes returns 0.
func (p *Pool) Inodes(string, string) (uint64, error) { return 0, nil }

// Mounted returns false.
func (p *Pool) Mounted(string, string) bool { return false }

// Trim discards nothing.
func (p *Pool) Trim(string, string, uint64, uint64) (uint64, error) { return 0, nil }

// Mount does nothing.
func (p *Pool) Mount(_, _, dir string, _ []string) (string, error) { return dir, nil }

// Unmount does nothing.
func (p *Pool) Unmount(string) error { return nil }
