package thinmeta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	// blockBytes is the size of a block (THIN_METADATA_BLOCK_SIZE).
	blockBytes = 4096
	// maxBlocks is how many the kernel can manage (dm-space-map-metadata.h:
	// DM_SM_METADATA_MAX_BLOCKS). The superblock's own figure is no bound: it
	// stays as it is when the device is grown.
	maxBlocks = 255 * (1<<14 - 64)

	// What a checksum is mixed with tells the kinds of blocks apart
	// (SUPERBLOCK_CSUM_XOR, BTREE_CSUM_XOR).
	superblockSalt = 160774
	nodeSalt       = 121107
)

type block [blockBytes]byte

func (b *block) u32(offset int) uint32 { return binary.LittleEndian.Uint32(b[offset:]) }
func (b *block) u64(offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }

// read fills b with block number of r. Its end is found in r, not elsewhere: to
// be told of a block behind it is damage.
func (b *block) read(r io.ReaderAt, number uint64) error {
	if number >= maxBlocks {
		return fmt.Errorf("%w: no metadata is that large", ErrDamaged)
	}
	n, err := r.ReadAt(b[:], int64(number)*blockBytes)
	switch {
	case n == blockBytes:
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it lies behind the end", ErrDamaged)
	}
	return fmt.Errorf("reading: %w", err)
}

// checksum is what the block's first four bytes should hold: the checksum of the rest
// (dm_bm_checksum), for which the kernel leaves out the final inversion of crc32c.
func (b *block) checksum(salt uint32) uint32 {
	return ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)) ^ salt
}

// verify checks what all kinds of blocks begin with: the checksum, and, at byte 8, the
// block's number.
func (b *block) verify(number uint64, salt uint32) error {
	sum := b.checksum(salt)
	if got := b.u32(0); got != sum {
		return fmt.Errorf("%w: checksum %#08x, its content has %#08x", ErrDamaged, got, sum)
	}
	if got := b.u64(8); got != number {
		return fmt.Errorf("%w: it says that it is block %d", ErrDamaged, got)
	}
	return nil
}
