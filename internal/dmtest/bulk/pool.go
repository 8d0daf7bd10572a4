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

// baseUUID is that of every file system, as they all stem from one.
const baseUUID = "0f0e0d0c-1111-2222-3333-444455556666"

// Pool is a pool that takes no time and no space, and the file systems on its volumes. Its methods
// may be called concurrently.
type Pool struct {
	mu          sync.Mutex
	active      map[thin.ID]bool // whether it is read-only
	transaction uint64
}

// NewPool returns the pool that belongs to a store with this transaction id.
func NewPool(transaction uint64) *Pool {
	return &Pool{active: make(map[thin.ID]bool), transaction: transaction}
}

// CreateThin does nothing.
func (p *Pool) CreateThin(ctx context.Context, _ thin.ID) error { return ctx.Err() }

// CreateSnap does nothing.
func (p *Pool) CreateSnap(ctx context.Context, _, _ thin.ID) error { return ctx.Err() }

// Delete does nothing.
func (p *Pool) Delete(ctx context.Context, _ thin.ID) error { return ctx.Err() }

// Volumes returns none.
func (p *Pool) Volumes(ctx context.Context, _, _ thin.ID) (map[thin.ID]bool, error) {
	return nil, ctx.Err()
}

// Writes returns none.
func (p *Pool) Writes(ctx context.Context, _ thin.ID) (thinmeta.Writes, error) {
	return thinmeta.Writes{}, ctx.Err()
}

// Twins returns none.
func (p *Pool) Twins(ctx context.Context, _ thin.ID) ([]thin.ID, error) { return nil, ctx.Err() }

// Time returns that of a new pool.
func (p *Pool) Time(ctx context.Context) (uint32, error) { return 0, ctx.Err() }

// SetTransactionID changes what Status returns.
func (p *Pool) SetTransactionID(ctx context.Context, _, to uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.transaction = to
	return ctx.Err()
}

// Status returns that of a pool that is nearly empty.
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

// RecentStatus is Status, at any age.
func (p *Pool) RecentStatus(ctx context.Context, _ time.Duration) (pool.Status, error) {
	return p.Status(ctx)
}

// CachedStatus is Status, at any age.
func (p *Pool) CachedStatus(ctx context.Context, _ time.Duration) (pool.Status, error) {
	return p.Status(ctx)
}

// IsActive reports that every volume is active.
func (p *Pool) IsActive(thin.ID) bool { return true }

// VolumePath returns a path where nothing is.
func (p *Pool) VolumePath(id thin.ID) string { return fmt.Sprintf("/dev/mapper/bulk-snap-%d", id) }

// Activate makes a volume active.
func (p *Pool) Activate(ctx context.Context, id thin.ID, _ uint64, readOnly bool) (pool.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active[id] = readOnly
	return p.volume(id), ctx.Err()
}

// Deactivate makes a volume inactive.
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

// Mapped returns a block, or devmapper.ErrNotFound for a volume that is not active.
func (p *Pool) Mapped(ctx context.Context, id thin.ID) (uint64, error) {
	_, err := p.Lookup(ctx, id)
	return BlockBytes, err
}

// Usage is a block of its own for every volume.
func (p *Pool) Usage(ctx context.Context, _, _ thin.ID, _ time.Duration) (pool.Usage, error) {
	return pool.Usage{Mapped: BlockBytes, Own: BlockBytes}, ctx.Err()
}

// Exclusive is a block for every volume.
func (p *Pool) Exclusive(ctx context.Context, _ thin.ID, _ ...thin.ID) (uint64, error) {
	return BlockBytes, ctx.Err()
}

// Make does nothing: every volume has a file system.
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

// Inodes counts none.
func (p *Pool) Inodes(string, string) (uint64, error) { return 0, nil }

// Mounted says that nothing is.
func (p *Pool) Mounted(string, string) bool { return false }

// Trim finds nothing to discard.
func (p *Pool) Trim(string, string, uint64, uint64) (uint64, error) { return 0, nil }

// Mount does nothing.
func (p *Pool) Mount(_, _, dir string, _ []string) (string, error) { return dir, nil }

// Unmount does nothing.
func (p *Pool) Unmount(string) error { return nil }
