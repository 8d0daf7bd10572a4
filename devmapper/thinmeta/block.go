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
	// maxBlocks is the largest number of blocks (dm-space-map-metadata.h:
	// DM_SM_METADATA_MAX_BLOCKS). The number in the superblock is no limit: it does not change when
	// the device is extended.
	maxBlocks = 255 * (1<<14 - 64)

	// The salt of the checksum depends on the kind of block
	// (SUPERBLOCK_CSUM_XOR, BTREE_CSUM_XOR).
	superblockSalt = 160774
	nodeSalt       = 121107
)

type block [blockBytes]byte

func (b *block) u32(offset int) uint32 { return binary.LittleEndian.Uint32(b[offset:]) }
func (b *block) u64(offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }

// read fills b with block number of r. A number past the end of r is damage.
func (b *block) read(r io.ReaderAt, number uint64) error {
	if number >= maxBlocks {
		return fmt.Errorf("%w: its number is too large", ErrDamaged)
	}
	n, err := r.ReadAt(b[:], int64(number)*blockBytes)
	switch {
	case n == blockBytes:
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it is past the end", ErrDamaged)
	}
	return fmt.Errorf("read: %w", err)
}

func (b *block) readVerified(r io.ReaderAt, number uint64, salt uint32) error {
	err := b.read(r, number)
	if err == nil {
		err = b.verify(number, salt)
	}
	if err != nil {
		return fmt.Errorf("block %d: %w", number, err)
	}
	return nil
}

// checksum returns the checksum of all but the first four bytes, where it is stored
// (dm_bm_checksum). The kernel omits the final inversion of crc32c.
func (b *block) checksum(salt uint32) uint32 {
	return ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)) ^ salt
}

// verify checks the checksum, and the block's number at byte 8, of any kind of block.
func (b *block) verify(number uint64, salt uint32) error {
	sum := b.checksum(salt)
	if got := b.u32(0); got != sum {
		return fmt.Errorf("%w: checksum %#08x, but its content has %#08x", ErrDamaged, got, sum)
	}
	if got := b.u64(8); got != number {
		return fmt.Errorf("%w: it has the number %d", ErrDamaged, got)
	}
	return nil
}
