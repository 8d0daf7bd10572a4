package ext4

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// FileSystem is an ext4 that is not being written to. It is not safe for concurrent use.
type FileSystem struct {
	superblock
	r      io.ReaderAt
	groups []Group
	tables []uint32 // the groups, in the order of their inode tables

	bitmaps, records cachedBlock
	// nodes is the number of extent tree nodes that may still be read.
	nodes uint64
}

// Group has the places of the structures of a group of blocks and inodes.
type Group struct {
	BlockBitmap, InodeBitmap, InodeTable uint64 // blocks

	flags        uint16
	unusedInodes uint32 // at the end of the table
}

const (
	inodesUninitialized = 0x1
	blocksUninitialized = 0x2
)

// cachedBlock is the last block that was read. Its number is valid if it has bytes.
type cachedBlock struct {
	number uint64
	bytes  []byte
}

// Open reads the superblock and the group descriptors from the beginning of a device of the given
// size in bytes. The file system must be at rest: unmounted, or frozen, with an empty journal
// ([ErrUnclean] otherwise). Other errors are [ErrNotExt4], [ErrDamaged], and errors.ErrUnsupported
// for unknown features.
func Open(r io.ReaderAt, bytes uint64) (*FileSystem, error) {
	sb, err := readSuperblock(r, bytes)
	if err != nil {
		return nil, fmt.Errorf("superblock of the ext4: %w", err)
	}
	f := &FileSystem{superblock: sb, r: r, nodes: sb.blocks}
	if err := f.readGroups(); err != nil {
		return nil, fmt.Errorf("groups of the ext4: %w", err)
	}
	return f, nil
}

func (f *FileSystem) readGroups() error {
	count := f.superblock.groups()
	f.groups = make([]Group, 0, count)
	block := make([]byte, f.blockBytes)
	for n := range f.descriptorBlocks() {
		if err := f.read(block, f.descriptorBlock(n)); err != nil {
			return err
		}
		for at := uint64(0); at < f.groupsPerBlock() && uint64(len(f.groups)) < count; at++ {
			g := f.parseGroup(block[at*uint64(f.groupBytes):])
			if !f.holds(Span{g.BlockBitmap, 1}) || !f.holds(Span{g.InodeBitmap, 1}) ||
				!f.holds(Span{g.InodeTable, f.tableBlocks()}) || g.unusedInodes > f.inodesPerGroup {
				return fmt.Errorf("%w: the descriptor of group %d", ErrDamaged, len(f.groups))
			}
			f.groups = append(f.groups, g)
		}
	}
	f.tables = make([]uint32, count)
	for n := range f.tables {
		f.tables[n] = uint32(n)
	}
	slices.SortFunc(f.tables, func(a, b uint32) int {
		return cmp.Compare(f.groups[a].InodeTable, f.groups[b].InodeTable)
	})
	for n := 1; n < len(f.tables); n++ {
		if f.groups[f.tables[n-1]].InodeTable+f.tableBlocks() > f.groups[f.tables[n]].InodeTable {
			return fmt.Errorf("%w: the tables of inodes of groups %d and %d overlap", ErrDamaged, f.tables[n-1], f.tables[n])
		}
	}
	return nil
}

// parseGroup parses struct ext4_group_desc.
func (f *FileSystem) parseGroup(raw []byte) Group {
	le := binary.LittleEndian
	g := Group{
		BlockBitmap: uint64(le.Uint32(raw[0x0:])), InodeBitmap: uint64(le.Uint32(raw[0x4:])),
		InodeTable: uint64(le.Uint32(raw[0x8:])),
		flags:      le.Uint16(raw[0x12:]), unusedInodes: uint32(le.Uint16(raw[0x1C:])),
	}
	if f.groupBytes >= 64 {
		g.BlockBitmap |= uint64(le.Uint32(raw[0x20:])) << 32
		g.InodeBitmap |= uint64(le.Uint32(raw[0x24:])) << 32
		g.InodeTable |= uint64(le.Uint32(raw[0x28:])) << 32
		g.unusedInodes |= uint32(le.Uint16(raw[0x32:])) << 16
	}
	if !f.groupFlagsValid() {
		g.flags, g.unusedInodes = 0, 0
	}
	return g
}

// holds reports whether blocks lie within the file system, past its superblock.
func (f *FileSystem) holds(s Span) bool {
	return s.Start > uint64(f.firstBlock) && s.Start < f.blocks && s.Length <= f.blocks-s.Start
}

// read fills whole blocks, starting with block at.
func (f *FileSystem) read(blocks []byte, at uint64) error {
	n, err := f.r.ReadAt(blocks, int64(at*uint64(f.blockBytes)))
	switch {
	case n == len(blocks):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return fmt.Errorf("%w: block %d is past the end", ErrDamaged, at)
	}
	return fmt.Errorf("read block %d: %w", at, err)
}

// cached returns a block, which is valid until the next call with the same cache.
func (f *FileSystem) cached(c *cachedBlock, number uint64) ([]byte, error) {
	if c.bytes != nil && c.number == number {
		return c.bytes, nil
	}
	buffer := c.bytes
	if buffer == nil {
		buffer = make([]byte, f.blockBytes)
	}
	c.bytes = nil
	if err := f.read(buffer, number); err != nil {
		return nil, err
	}
	c.number, c.bytes = number, buffer
	return buffer, nil
}

// Geometry returns the properties that two file systems must share before their records can be
// compared.
func (f *FileSystem) Geometry() Geometry { return f.superblock.Geometry }

// BlockBytes returns the size of a block.
func (f *FileSystem) BlockBytes() uint64 { return uint64(f.blockBytes) }

// Blocks returns the number of blocks.
func (f *FileSystem) Blocks() uint64 { return f.blocks }

// Inodes returns the largest inode number.
func (f *FileSystem) Inodes() uint64 { return f.inodes }

// Groups returns the groups, which must not be changed.
func (f *FileSystem) Groups() []Group { return f.groups }

// SameTables reports whether both have their inode tables in the same places, for the groups that
// both have.
func (f *FileSystem) SameTables(other *FileSystem) bool {
	for n := range min(len(f.groups), len(other.groups)) {
		if f.groups[n].InodeTable != other.groups[n].InodeTable {
			return false
		}
	}
	return true
}

// Used reports whether a block is in use, as the bitmap of its group says. In a group whose bitmap
// is not yet written, it is false for all blocks: only those of [FileSystem.Structures] are in use
// (ext4_init_block_bitmap in fs/ext4/balloc.c). It is true for a block outside of the file system.
func (f *FileSystem) Used(block uint64) (bool, error) {
	if block < uint64(f.firstBlock) || block >= f.blocks {
		return true, nil
	}
	at := block - uint64(f.firstBlock)
	g := &f.groups[at/uint64(f.blocksPerGroup)]
	if g.flags&blocksUninitialized != 0 {
		return false, nil
	}
	return f.bit(g.BlockBitmap, at%uint64(f.blocksPerGroup))
}

// Allocated reports whether an inode is in use. It is true only if the bitmap of its group says so.
func (f *FileSystem) Allocated(inode uint32) (bool, error) {
	if inode == 0 || uint64(inode) > f.inodes {
		return false, nil
	}
	g := &f.groups[(inode-1)/f.inodesPerGroup]
	if g.flags&inodesUninitialized != 0 {
		return false, nil
	}
	return f.bit(g.InodeBitmap, uint64((inode-1)%f.inodesPerGroup))
}

func (f *FileSystem) bit(bitmap, n uint64) (bool, error) {
	bytes, err := f.cached(&f.bitmaps, bitmap)
	if err != nil {
		return false, fmt.Errorf("bitmap: %w", err)
	}
	return bytes[n/8]&(1<<(n%8)) != 0, nil
}
