package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// extend extends first the file, then the loop device, then the pool. A second call completes the
// rest after a crash.
func (b *loopBackend) extend(ctx context.Context, p *Pool, dataBytes, metadataBytes uint64) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	return p.extendDevices(dataBytes, metadataBytes, func() error {
		if err := b.requireRoom(ctx, p, dataBytes); err != nil {
			return err
		}
		return b.extendDevice(ctx, p, b.DataFile, func(t thin.PoolTable) string { return t.Data }, dataBytes)
	}, func() error {
		return b.extendDevice(ctx, p, b.MetadataFile, func(t thin.PoolTable) string { return t.Metadata }, metadataBytes)
	})
}

// requireRoom fails with ENOSPC if the disk lacks room for the added data and for the holes in the
// present data.
func (b *loopBackend) requireRoom(ctx context.Context, p *Pool, bytes uint64) error {
	// extendDevices has just read the status.
	status, err := p.RecentStatus(ctx, time.Minute)
	if err != nil || bytes <= status.Data.Total || p.data.noSpaceReason != "" {
		return err
	}
	if more := bytes - status.Data.Total; more+status.Data.Holes > status.Data.DiskFree {
		return fmt.Errorf("it needs %d bytes, and %d more for its holes; its disk has %d bytes free: %w",
			more, status.Data.Holes, status.Data.DiskFree, unix.ENOSPC)
	}
	return nil
}

// extendDevice extends one of the pool's two devices. number returns its device number from the
// table.
func (b *loopBackend) extendDevice(
	ctx context.Context, p *Pool, file string, number func(thin.PoolTable) string, bytes uint64,
) error {
	live, err := p.live()
	if err != nil {
		return err
	}
	path, err := blockdev.Path(number(live.table))
	if err != nil {
		return err
	}
	if err := extendLoop(ctx, file, path, bytes); err != nil {
		return err
	}
	return b.reload(p, live)
}

// extendLoop extends a file, and the loop device on it, to at least the given size in bytes.
func extendLoop(ctx context.Context, file, dev string, bytes uint64) error {
	info, err := blockdev.LoopInfo(dev)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.SameFile(st) {
		return fmt.Errorf("%s is on %s, not on %s: %w", dev, info.BackingFile, file, ErrWrongPool)
	}
	if st.Size() < int64(bytes) {
		if err := growFile(ctx, f, int64(bytes)); err != nil {
			return err
		}
		// gofail: var afterGrowFile struct{}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if size, err := blockdev.Size(dev); err != nil || size >= max(bytes, uint64(st.Size())) {
		return err
	}
	return blockdev.LoopSetCapacity(dev)
}

// reload makes the kernel read the sizes of the pool's devices, if one has changed. It also resumes
// a pool that is out_of_data_space with free blocks.
func (b *loopBackend) reload(p *Pool, live liveTable) error {
	target, changed, err := b.fitTable(live)
	if err != nil {
		return err
	}
	status, err := p.thin.Status(true)
	if err != nil {
		return err
	}
	grown, err := metadataHasGrown(status, live.table)
	if err != nil || !changed && !grown && !live.device.Suspended && !status.HoldsBackNeedlessly() {
		return err
	}
	return exchangeOrKeep(p, target, live)
}

// exchangeOrKeep makes target the pool's table. If that fails, it loads the old table again: a
// suspended pool would block all its volumes.
func exchangeOrKeep(p *Pool, target devmapper.Target, live liveTable) error {
	if err := exchange(p, target); err != nil {
		return errors.Join(err, exchange(p, live.target))
	}
	return nil
}

// fitTable returns the table that fits the present size of the data device, and whether it differs
// from the live one. It compares values, not text: the kernel ends a table without features with a
// space.
func (b *loopBackend) fitTable(live liveTable) (target devmapper.Target, changed bool, err error) {
	table := live.table
	path, err := blockdev.Path(table.Data)
	if err != nil {
		return live.target, false, err
	}
	bytes, err := blockdev.Size(path)
	if err != nil {
		return live.target, false, err
	}
	// The kernel refuses a smaller pool and leaves it suspended.
	sectors := max(bytes/b.BlockBytes*b.BlockBytes/devmapper.SectorBytes, live.target.Length)
	low := b.lowWaterBlocks(sectors * devmapper.SectorBytes / b.BlockBytes)
	changed = sectors != live.target.Length || low != table.LowWaterBlocks
	table.LowWaterBlocks = low
	target, err = table.Target(sectors)
	return target, changed, err
}

// metadataHasGrown compares the size of the metadata device with the one that the kernel read at
// the last resume.
func metadataHasGrown(status thin.PoolStatus, table thin.PoolTable) (bool, error) {
	path, err := blockdev.Path(table.Metadata)
	if err != nil {
		return false, err
	}
	bytes, err := blockdev.Size(path)
	if err != nil {
		return false, err
	}
	known := status.MetadataTotal * MetadataBlockBytes
	return known > 0 && min(bytes, MaxMetadataBytes)/MetadataBlockBytes*MetadataBlockBytes > known, nil
}

// exchange makes target the pool's table. One ioctl suspends and resumes the pool: a daemon killed
// between two ioctls could not exit while one of its threads waits for a volume. Writes that wait
// for space are queued again, not waited for.
func exchange(p *Pool, target devmapper.Target) error {
	if err := p.awaitHeldWrites(); err != nil {
		return err
	}
	if _, err := p.control.Load(p.device, []devmapper.Target{target}, false); err != nil {
		return err
	}
	// gofail: var beforePoolExchange struct{}
	_, err := p.control.Exchange(p.device, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	return err
}
