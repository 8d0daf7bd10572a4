package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// Extend makes the pool's data device dataBytes and its metadata device
// metadataBytes large; one that is as large already stays as it is, and so does one
// for which 0 is given. What waits for space in a full pool goes on.
//
// In a pool that LVM made it takes the space from the volume group, in whole extents.
// A pool that somebody else made is as large as it is, or the error is ErrNotOurs.
// Otherwise the file grows first, then the loop device, then the pool; called again
// after a crash in between it does what was left. It is EFBIG when the file system
// cannot have a file of that size, and ErrMetadataTooSmall, with nothing changed, when
// the data would be too much for the metadata.
func (p *Pool) Extend(ctx context.Context, dataBytes, metadataBytes uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.existing {
		return p.extendExisting(ctx, dataBytes, metadataBytes)
	}
	if p.lvm != nil {
		return p.extendLVM(ctx, dataBytes, metadataBytes)
	}
	p.loading.Lock()
	defer p.loading.Unlock()
	// The metadata first: what counts the data's blocks lies there.
	err := growLoop(p.backing.MetadataFile, p.backing.MetadataPath, metadataBytes)
	if err == nil {
		err = p.reload()
	}
	if err != nil {
		return fmt.Errorf("extend the metadata of pool %s to %d bytes: %w", p.name, metadataBytes, err)
	}
	err = p.checkMetadataFor(dataBytes)
	if err == nil {
		err = growLoop(p.backing.DataFile, p.backing.DataPath, dataBytes)
	}
	if err == nil {
		err = p.reload()
	}
	if err != nil {
		return fmt.Errorf("extend the data of pool %s to %d bytes: %w", p.name, dataBytes, err)
	}
	return nil
}

// blocksPerBitmap is how many blocks of data a block of metadata counts
// (drivers/md/persistent-data/dm-space-map-common.h: 2 bits each, after a header of
// 16 bytes).
const blocksPerBitmap = (MetadataBlockBytes - 16) * 4

// checkMetadataFor refuses to make the data so large when what is left of the metadata
// might not be enough to count its blocks: the kernel would find out in the middle,
// and take no changes any more.
func (p *Pool) checkMetadataFor(dataBytes uint64) error {
	status, err := p.thin.Status(true)
	if err != nil {
		return err
	}
	blocks := dataBytes / p.blockBytes
	more := (blocks - min(blocks, status.DataTotal)) / blocksPerBitmap
	// Twice that, for the index, and for what is copied until it is committed.
	if left := status.MetadataTotal - min(status.MetadataUsed, status.MetadataTotal); 2*more > left {
		return fmt.Errorf("it would need %d bytes of metadata, of which %d are left: %w",
			2*more*MetadataBlockBytes, left*MetadataBlockBytes, ErrMetadataTooSmall)
	}
	return nil
}

// growLoop makes a file, and the loop device on it, so large, if they are smaller.
func growLoop(file, dev string, bytes uint64) error {
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
		return fmt.Errorf("%s stands on %s, not on %s: %w", dev, info.BackingFile, file, ErrWrongPool)
	}
	if st.Size() < int64(bytes) {
		if err := f.Truncate(int64(bytes)); err != nil {
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

// reload has the kernel look at the pool's devices again, unless it has no need to.
func (p *Pool) reload() error {
	dev, targets, err := p.control.Table(p.device)
	if err != nil {
		return err
	}
	if len(targets) != 1 || targets[0].Type != thin.PoolType {
		return fmt.Errorf("device %s is no thin pool: %w", p.device, ErrWrongPool)
	}
	target, changed, err := p.present(targets[0])
	if err != nil {
		return err
	}
	grown, err := p.metadataHasGrown()
	if err != nil || !changed && !grown && !dev.Suspended {
		return err
	}
	if err := p.exchange(target); err != nil {
		// The pool must not stay suspended: everything on it would wait.
		return errors.Join(err, p.exchange(targets[0]))
	}
	return nil
}

// present is the table that suits the devices as they are now, and whether it is
// another than the live one. Their text is no measure: the kernel ends a table without
// features with a space.
func (p *Pool) present(live devmapper.Target) (target devmapper.Target, changed bool, err error) {
	table, err := thin.ParsePoolTable(live.Params)
	if err != nil {
		return live, false, err
	}
	bytes, err := blockdev.Size(p.backing.DataPath)
	if err != nil {
		return live, false, err
	}
	// The kernel refuses to make a pool smaller, and leaves it suspended.
	sectors := max(bytes/p.blockBytes*p.blockBytes/SectorBytes, live.Length)
	low := p.lowWaterBlocks(sectors * SectorBytes / p.blockBytes)
	changed = sectors != live.Length || low != table.LowWaterBlocks
	table.LowWaterBlocks = low
	target, err = table.Target(sectors)
	return target, changed, err
}

// metadataHasGrown tells whether the metadata device is larger than the kernel knows:
// it looks when the pool is resumed.
func (p *Pool) metadataHasGrown() (bool, error) {
	status, err := p.thin.Status(true)
	if err != nil {
		return false, err
	}
	bytes, err := blockdev.Size(p.backing.MetadataPath)
	if err != nil {
		return false, err
	}
	known := status.MetadataTotal * MetadataBlockBytes
	return known > 0 && min(bytes, MaxMetadataBytes)/MetadataBlockBytes*MetadataBlockBytes > known, nil
}

// exchange makes target the pool's table. Writes that wait for space are not waited
// for, but put in line again.
//
// The pool is never suspended between two calls: a daemon that is killed there could
// not end while one of its threads waits for a volume of the pool, and the next would
// wait for that.
func (p *Pool) exchange(target devmapper.Target) error {
	if _, err := p.control.Load(p.device, []devmapper.Target{target}, false); err != nil {
		return err
	}
	// gofail: var beforePoolExchange struct{}
	_, err := p.control.Exchange(p.device, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	return err
}
