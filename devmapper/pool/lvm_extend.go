package pool

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// extend takes whole extents from the volume group. It fails, with the device unchanged, if the
// group has too few.
func (b *lvmBackend) extend(ctx context.Context, p *Pool, dataBytes, metadataBytes uint64) error {
	data, metadata, err := b.paths(p)
	if err != nil {
		return err
	}
	return p.extendDevices(dataBytes, metadataBytes,
		func() error { return b.lvextend(ctx, p, "--size", data, dataBytes) },
		func() error { return b.lvextend(ctx, p, "--poolmetadatasize", metadata, metadataBytes) })
}

// paths returns the nodes of the pool's devices.
func (*lvmBackend) paths(p *Pool) (data, metadata string, err error) {
	live, err := p.live()
	if err != nil {
		return "", "", err
	}
	if data, err = blockdev.Path(live.table.Data); err != nil {
		return "", "", err
	}
	metadata, err = blockdev.Path(live.table.Metadata)
	return data, metadata, err
}

// lvextend extends one of the pool's devices to at least the given size in bytes.
func (b *lvmBackend) lvextend(ctx context.Context, p *Pool, option, device string, bytes uint64) error {
	if has, err := blockdev.Size(device); err != nil || has >= bytes {
		return err
	}
	g, name, err := b.locate(ctx)
	if err != nil {
		return err
	}
	if err := p.awaitHeldWrites(); err != nil {
		return err
	}
	// Even if lvextend fails: another program may have taken the cached free space.
	defer b.forget()
	err = g.step("lvextend", "--yes", option, fmt.Sprintf("%db", bytes), g.name+"/"+name).do(ctx)
	// lvextend refuses a device that dmeventd has extended meanwhile.
	if has, sizeErr := blockdev.Size(device); sizeErr == nil && has >= bytes {
		return nil
	}
	return err
}

func (b *lvmBackend) largest(ctx context.Context, p *Pool) (data, metadata uint64, err error) {
	free, err := b.recent(ctx, b.vgFree)
	if err != nil {
		return 0, 0, fmt.Errorf("read the free space for pool %s: %w", p.name, err)
	}
	dataPath, metadataPath, err := b.paths(p)
	if err != nil {
		return 0, 0, err
	}
	if data, err = blockdev.Size(dataPath); err != nil {
		return 0, 0, err
	}
	if metadata, err = blockdev.Size(metadataPath); err != nil {
		return 0, 0, err
	}
	return data + free, metadata + free, nil
}

func (s LVMSpec) vgFree(ctx context.Context) (uint64, error) {
	g, err := findGroup(ctx, func(d pvReport) bool { return d.VGUUID == s.VGUUID })
	if err != nil {
		return 0, fmt.Errorf("volume group %s: %w", s.Name, err)
	}
	return g.free, nil
}

// freeAge is the greatest age of the free space of a volume group. A pool that is short of space is
// checked each second, and each LVM query opens every disk of the host.
const freeAge = 10 * time.Second

// freeSpace caches the free bytes of a volume group.
type freeSpace struct {
	mu    sync.Mutex
	bytes uint64
	at    time.Time
}

// recent returns the free bytes, at most freeAge old.
func (f *freeSpace) recent(ctx context.Context, read func(context.Context) (uint64, error)) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.at.IsZero() && time.Since(f.at) < freeAge {
		return f.bytes, nil
	}
	bytes, err := read(ctx)
	if err == nil {
		f.bytes, f.at = bytes, time.Now()
	}
	return bytes, err
}

// forget makes the next call of recent read the bytes.
func (f *freeSpace) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = time.Time{}
}

func (*lvmBackend) keepAllocated(context.Context, *Pool) (watch bool, err error) { return false, nil }
