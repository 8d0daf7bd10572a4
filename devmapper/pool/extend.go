package pool

import (
	"context"
	"fmt"
)

// Extend makes the pool's data device at least dataBytes large and its metadata device at least
// metadataBytes; 0 leaves a device alone. Writes that wait for space in a full pool continue.
//
// It returns ErrMetadataTooSmall, with the data unchanged, if the metadata has no room to count the
// new blocks; EFBIG if a file system does not support files of that size; and ErrNotOurs if a
// foreign pool is smaller.
func (p *Pool) Extend(ctx context.Context, dataBytes, metadataBytes uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.backend.extend(ctx, p, dataBytes, metadataBytes)
}

// Largest returns the largest possible sizes of the data and of the metadata, in bytes. Each counts
// all the free space that the pool may use in the file system below its file, or in LVM's volume
// group. The group's free space is at most ten seconds old, and newer than the last Extend; Largest
// runs LVM to read it. It returns ErrNotOurs for a foreign pool.
func (p *Pool) Largest(ctx context.Context) (data, metadata uint64, err error) {
	return p.backend.largest(ctx, p)
}

// KeepAllocated keeps space for the whole pool on the disk below its files, which other programs
// fill, too. Discards punch holes into the files. They are passed down while the disk has room for
// all holes and a reserve. With less room they are not, and the holes are allocated again.
//
// watch asks for the next call within a second: no event reports that others write to the disk.
// Without an error, it is false for a pool on devices, for one in a sparse file, and where the file
// system does not keep allocated space; see NotAllocated.
func (p *Pool) KeepAllocated(ctx context.Context) (watch bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if watch, err = p.backend.keepAllocated(ctx, p); err != nil {
		err = fmt.Errorf("pool %s: %w", p.name, err)
	}
	return watch, err
}

// NotAllocated returns why the disk below the pool may lack space for its data, or "".
func (p *Pool) NotAllocated() string { return p.data.noSpaceReason }

// extendDevices extends the metadata first, because it counts the blocks of the data.
func (p *Pool) extendDevices(dataBytes, metadataBytes uint64, extendData, extendMetadata func() error) error {
	if err := extendMetadata(); err != nil {
		return fmt.Errorf("extend the metadata of pool %s to %d bytes: %w", p.name, metadataBytes, err)
	}
	err := p.checkMetadataFor(dataBytes)
	if err == nil {
		err = extendData()
	}
	if err != nil {
		return fmt.Errorf("extend the data of pool %s to %d bytes: %w", p.name, dataBytes, err)
	}
	return nil
}

// blocksPerBitmap is the number of data blocks that one block of metadata counts
// (drivers/md/persistent-data/dm-space-map-common.h: 2 bits each, after a header of
// 16 bytes).
const blocksPerBitmap = (MetadataBlockBytes - 16) * 4

// checkMetadataFor fails if the free metadata may not suffice to count the blocks of dataBytes of
// data. The kernel would notice halfway, and make the pool read-only.
func (p *Pool) checkMetadataFor(dataBytes uint64) error {
	status, err := p.thin.Status(true)
	if err != nil {
		return err
	}
	blocks := dataBytes / p.blockBytes
	bitmaps := (blocks - min(blocks, status.DataTotal)) / blocksPerBitmap
	// Twice as many, for the index and for copies until the commit.
	if free := status.MetadataTotal - min(status.MetadataUsed, status.MetadataTotal); 2*bitmaps > free {
		return fmt.Errorf("it needs %d bytes of metadata, and %d are free: %w",
			2*bitmaps*MetadataBlockBytes, free*MetadataBlockBytes, ErrMetadataTooSmall)
	}
	return nil
}
