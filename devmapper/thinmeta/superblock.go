package thinmeta

import (
	"errors"
	"fmt"
	"io"
)

const (
	superblockMagic = 27022010 // THIN_SUPERBLOCK_MAGIC
	needsCheckFlag  = 1 << 0   // THIN_METADATA_NEEDS_CHECK_FLAG
)

// Superblock has the properties of the pool, and the roots of its trees.
type Superblock struct {
	UUID             [16]byte // zeros, because the kernel does not set it
	NeedsCheck       bool     // the metadata must be checked (thin_check) before it is written again
	Version          uint32   // of the format; 2 since Linux 3.10
	Time             uint32   // incremented for each snapshot
	TransactionID    uint64   // only the pool's user interprets it
	HeldRoot         uint64   // block of the metadata snapshot, 0 if there is none
	DataBlockSectors uint32   // the pool's block size, in sectors of 512 bytes
	MetadataBlocks   uint64   // of 4096 bytes, at the pool's creation; it may have grown since
	// DataUsed is the number of blocks that the pool counts as used. It is 0 in a metadata
	// snapshot, which has no such counts.
	DataUsed uint64

	mappingRoot uint64 // the tree of the volumes' mapping trees
	detailsRoot uint64 // the tree of the volumes
	dataMap     spaceMapRoot
	metadataMap spaceMapRoot
	checksum    uint32
}

// SuperblockChecksum reads a superblock with a wrong checksum, and returns the correct one, which
// belongs in its first four bytes, little-endian.
func SuperblockChecksum(r io.ReaderAt) (uint32, error) {
	var b block
	if err := b.read(r, 0); err != nil {
		return 0, fmt.Errorf("superblock: %w", err)
	}
	return b.checksum(superblockSalt), nil
}

// readSuperblock reads a superblock (struct thin_disk_superblock) at a block. With verify it
// checks the checksum.
func readSuperblock(r io.ReaderAt, number uint64, verify bool) (Superblock, error) {
	var b block
	if err := b.read(r, number); err != nil {
		if number == 0 && errors.Is(err, ErrDamaged) {
			return Superblock{}, fmt.Errorf("%w: it is smaller than a block", ErrNoMetadata)
		}
		return Superblock{}, err
	}
	if b.u64(32) != superblockMagic {
		return Superblock{}, ErrNoMetadata
	}
	if err := b.verify(number, superblockSalt); err != nil && verify {
		return Superblock{}, err
	}
	// The kernel refuses all incompatible features (THIN_FEATURE_INCOMPAT_SUPP is 0).
	if features := b.u32(360); features != 0 {
		return Superblock{}, fmt.Errorf("incompatible features %#x: %w", features, errors.ErrUnsupported)
	}
	s := Superblock{
		NeedsCheck:       b.u32(4)&needsCheckFlag != 0,
		Version:          b.u32(40),
		Time:             b.u32(44),
		TransactionID:    b.u64(48),
		HeldRoot:         b.u64(56),
		checksum:         b.u32(0),
		mappingRoot:      b.u64(320),
		detailsRoot:      b.u64(328),
		dataMap:          decodeSpaceMapRoot(b[64:]),
		metadataMap:      decodeSpaceMapRoot(b[192:]),
		DataBlockSectors: b.u32(336),
		MetadataBlocks:   b.u64(344),
		DataUsed:         b.u64(72), // nr_allocated of the struct disk_sm_root at 64
	}
	copy(s.UUID[:], b[16:])
	return s, nil
}
