package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	superblockOffset = 1024
	superblockBytes  = 1024
	// maxGroups limits the memory for the groups: 32 TiB in blocks of 4 KiB.
	maxGroups = 1 << 18

	magic = 0xEF53

	stateValid  = 0x1
	stateErrors = 0x2

	compatExtAttr      = 0x8
	compatSparseSuper2 = 0x200

	incompatFiletype   = 0x2
	incompatRecover    = 0x4
	incompatMetaBG     = 0x10
	incompatExtents    = 0x40
	incompat64bit      = 0x80
	incompatFlexBG     = 0x200
	incompatCsumSeed   = 0x2000
	incompatLargedir   = 0x4000
	incompatInlineData = 0x8000

	roCompatSparseSuper   = 0x1
	roCompatLargeFile     = 0x2
	roCompatHugeFile      = 0x8
	roCompatGdtCsum       = 0x10
	roCompatDirNlink      = 0x20
	roCompatExtraIsize    = 0x40
	roCompatQuota         = 0x100
	roCompatMetadataCsum  = 0x400
	roCompatProject       = 0x2000
	roCompatOrphanPresent = 0x10000

	// knownIncompat and knownROCompat are the features that this package understands.
	knownIncompat = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64bit |
		incompatFlexBG | incompatCsumSeed | incompatLargedir | incompatInlineData
	knownROCompat = roCompatSparseSuper | roCompatLargeFile | roCompatHugeFile | roCompatGdtCsum | roCompatDirNlink |
		roCompatExtraIsize | roCompatQuota | roCompatMetadataCsum | roCompatProject | roCompatOrphanPresent
	// volatileROCompat are the features that the kernel sets and clears by itself. They do not
	// change the format of a record.
	volatileROCompat = roCompatLargeFile | roCompatDirNlink | roCompatOrphanPresent

	// firstOrdinaryInode is s_first_ino, for which mke2fs has no other value.
	firstOrdinaryInode = 11
	rootInode          = 2
)

// Geometry has all fields of a superblock that determine how the rest of the file system is read,
// by this package and by the kernel. The superblocks of two file systems with equal geometries
// differ only in sizes, counts and times: an inode with equal bytes is the same in both.
type Geometry struct {
	blockBytes, inodeBytes, groupBytes           uint32 // groupBytes: of a descriptor
	blocksPerGroup, inodesPerGroup               uint32
	firstBlock, firstMetaGroup                   uint32
	compat, incompat, roCompat                   uint32
	backups                                      [8]byte // of sparse_super2: two groups
	uuid, hashSeed                               [16]byte
	hashVersion                                  byte
	flags, mountFlags, checksumSeed, encoding    uint32
	mountOptions                                 [64]byte
	journal, userQuota, groupQuota, projectQuota uint32
	orphanFile                                   uint32
}

// superblock has the used fields of struct ext4_super_block in fs/ext4/ext4.h.
type superblock struct {
	Geometry
	blocks, inodes    uint64
	reservedGDTBlocks uint32
}

func readSuperblock(r io.ReaderAt, bytes uint64) (superblock, error) {
	// Block devices are read in whole sectors, which may have 4096 bytes.
	var buffer [4096]byte
	n, err := r.ReadAt(buffer[:], 0)
	switch {
	case n == len(buffer):
	case err == nil, errors.Is(err, io.EOF):
		return superblock{}, fmt.Errorf("%w: it ends within its superblock", ErrNotExt4)
	default:
		return superblock{}, fmt.Errorf("read: %w", err)
	}
	raw := buffer[superblockOffset:][:superblockBytes]
	sb, err := parseSuperblock(raw)
	if err != nil {
		return superblock{}, err
	}
	if sb.blocks > bytes/uint64(sb.blockBytes) {
		return superblock{}, fmt.Errorf("%w: it has %d blocks of %d bytes on a device of %d bytes",
			ErrDamaged, sb.blocks, sb.blockBytes, bytes)
	}
	return sb, nil
}

func parseSuperblock(raw []byte) (superblock, error) {
	le := binary.LittleEndian
	u32 := func(offset int) uint32 { return le.Uint32(raw[offset:]) }
	shift := u32(0x18)
	if le.Uint16(raw[0x38:]) != magic || shift > 6 {
		return superblock{}, ErrNotExt4
	}
	sb := superblock{
		Geometry: Geometry{
			blockBytes: 1024 << shift, inodeBytes: uint32(le.Uint16(raw[0x58:])), groupBytes: 32,
			blocksPerGroup: u32(0x20), inodesPerGroup: u32(0x28),
			firstBlock: u32(0x14), firstMetaGroup: u32(0x104),
			compat: u32(0x5C) &^ compatExtAttr, incompat: u32(0x60), roCompat: u32(0x64),
			backups: [8]byte(raw[0x24C:]), uuid: [16]byte(raw[0x68:]), hashSeed: [16]byte(raw[0xEC:]),
			hashVersion: raw[0xFC], flags: u32(0x160), mountFlags: u32(0x100), checksumSeed: u32(0x270),
			encoding: u32(0x27C), mountOptions: [64]byte(raw[0x200:]),
			journal: u32(0xE0), userQuota: u32(0x240), groupQuota: u32(0x244), projectQuota: u32(0x26C),
			orphanFile: u32(0x280),
		},
		blocks: uint64(u32(0x4)), inodes: uint64(u32(0x0)), reservedGDTBlocks: uint32(le.Uint16(raw[0xCE:])),
	}
	if sb.incompat&incompat64bit != 0 {
		sb.blocks |= uint64(u32(0x150)) << 32
		sb.groupBytes = uint32(le.Uint16(raw[0xFE:]))
	}
	if sb.incompat&incompatMetaBG == 0 {
		sb.firstMetaGroup = 0
	}
	if err := sb.checkSupported(u32(0x4C), u32(0x48), u32(0x54)); err != nil {
		return superblock{}, err
	}
	if state := le.Uint16(raw[0x3A:]); state&stateValid == 0 || state&stateErrors != 0 || u32(0x194) != 0 {
		return superblock{}, fmt.Errorf("%w: state %#x, %d errors", ErrUnclean, state, u32(0x194))
	}
	if sb.incompat&incompatRecover != 0 {
		return superblock{}, fmt.Errorf("%w: its journal must be replayed", ErrUnclean)
	}
	sb.roCompat &^= volatileROCompat
	return sb, sb.checkConsistent()
}

// checkSupported checks the features, the revision, the creator's operating system, and the first
// inode that is not reserved.
func (sb *superblock) checkSupported(revision, creator, firstInode uint32) error {
	unsupported := func(what string, value uint32) error {
		return fmt.Errorf("an ext4 with %s %#x: %w", what, value, errors.ErrUnsupported)
	}
	switch unknown, unknownRO := sb.incompat&^knownIncompat, sb.roCompat&^knownROCompat; {
	case unknown != 0:
		return unsupported("incompatible features", unknown)
	case unknownRO != 0:
		return unsupported("read-only compatible features", unknownRO)
	case sb.incompat&incompatFiletype == 0:
		return unsupported("directories without types: features", sb.incompat)
	case revision != 1:
		return unsupported("revision", revision)
	case creator != 0:
		return unsupported("creator", creator)
	case firstInode != firstOrdinaryInode:
		return unsupported("first inode", firstInode)
	case sb.journal != 0 && sb.journal != 8:
		return unsupported("journal in inode", sb.journal)
	}
	return nil
}

// checkConsistent makes the checks of the kernel at a mount (ext4_fill_super).
func (sb *superblock) checkConsistent() error {
	damaged := func(what string, value uint64) error { return fmt.Errorf("%w: %s is %d", ErrDamaged, what, value) }
	block := sb.blockBytes
	powerOfTwo := func(n uint32) bool { return n&(n-1) == 0 }
	firstBlock := uint32(0)
	if block == superblockOffset {
		firstBlock = 1
	}
	switch {
	case sb.inodeBytes < 128 || sb.inodeBytes > block || !powerOfTwo(sb.inodeBytes):
		return damaged("the size of an inode", uint64(sb.inodeBytes))
	case sb.groupBytes < 32 || sb.groupBytes > block || !powerOfTwo(sb.groupBytes),
		sb.incompat&incompat64bit != 0 && sb.groupBytes < 64:
		return damaged("the size of a group descriptor", uint64(sb.groupBytes))
	case sb.blocksPerGroup < 256 || sb.blocksPerGroup > 8*block || sb.blocksPerGroup%8 != 0:
		return damaged("the number of blocks in a group", uint64(sb.blocksPerGroup))
	case sb.inodesPerGroup == 0 || sb.inodesPerGroup > 8*block || sb.inodesPerGroup%(block/sb.inodeBytes) != 0:
		return damaged("the number of inodes in a group", uint64(sb.inodesPerGroup))
	case sb.firstBlock != firstBlock:
		return damaged("the first block", uint64(sb.firstBlock))
	case sb.blocks <= uint64(firstBlock) || sb.blocks > 1<<48:
		return damaged("the number of blocks", sb.blocks)
	case sb.groups() > maxGroups:
		return fmt.Errorf("an ext4 with %d groups: %w", sb.groups(), errors.ErrUnsupported)
	case sb.inodes != sb.groups()*uint64(sb.inodesPerGroup):
		return damaged("the number of inodes", sb.inodes)
	case sb.reservedGDTBlocks > block/4:
		return damaged("the number of reserved descriptor blocks", uint64(sb.reservedGDTBlocks))
	case uint64(sb.firstMetaGroup) > sb.descriptorBlocks():
		return damaged("the first meta group", uint64(sb.firstMetaGroup))
	}
	return nil
}

func (sb *superblock) groups() uint64 {
	return (sb.blocks - uint64(sb.firstBlock) + uint64(sb.blocksPerGroup) - 1) / uint64(sb.blocksPerGroup)
}

// groupsPerBlock returns the number of descriptors in a block.
func (sb *superblock) groupsPerBlock() uint64 { return uint64(sb.blockBytes / sb.groupBytes) }

func (sb *superblock) descriptorBlocks() uint64 {
	return (sb.groups() + sb.groupsPerBlock() - 1) / sb.groupsPerBlock()
}

func (sb *superblock) firstOf(group uint64) uint64 {
	return uint64(sb.firstBlock) + group*uint64(sb.blocksPerGroup)
}

// tableBlocks returns the number of blocks of a group's inode table.
func (sb *superblock) tableBlocks() uint64 {
	return uint64(sb.inodesPerGroup) * uint64(sb.inodeBytes) / uint64(sb.blockBytes)
}

// groupFlagsValid reports whether the flags of a group are valid (ext4_has_group_desc_csum).
func (sb *superblock) groupFlagsValid() bool {
	return sb.roCompat&(roCompatGdtCsum|roCompatMetadataCsum) != 0
}
