package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// Record is the record of an inode in the table: struct ext4_inode with the bytes after it, at
// least 128 in all.
type Record []byte

const (
	modeType      = 0xF000
	modeFIFO      = 0x1000
	modeCharacter = 0x2000
	modeDirectory = 0x4000
	modeBlock     = 0x6000
	modeSymlink   = 0xA000
	modeSocket    = 0xC000

	flagExtents    = 0x80000
	flagInlineData = 0x10000000

	blockOffset, blockEnd = 0x28, 0x64 // i_block
	fastSymlink           = blockEnd - blockOffset
	oldRecord             = 128
)

// Mode returns the type and the permissions, as in stat(2).
func (r Record) Mode() uint16 { return binary.LittleEndian.Uint16(r) }

// Directory reports whether the inode is a directory.
func (r Record) Directory() bool { return r.Mode()&modeType == modeDirectory }

// Links returns the number of names. It is 1 for a directory with many subdirectories.
func (r Record) Links() uint16 { return binary.LittleEndian.Uint16(r[0x1A:]) }

func (r Record) flags() uint32 { return binary.LittleEndian.Uint32(r[0x20:]) }

func (r Record) size() uint64 {
	return uint64(binary.LittleEndian.Uint32(r[0x4:])) | uint64(binary.LittleEndian.Uint32(r[0x6C:]))<<32
}

// AttributeBlock returns the block of extended attributes outside of the record, or 0.
func (r Record) AttributeBlock() uint64 {
	return uint64(binary.LittleEndian.Uint32(r[0x68:])) | uint64(binary.LittleEndian.Uint16(r[0x76:]))<<32
}

// extra returns the number of bytes of the fixed part beyond the first 128.
func (r Record) extra() int {
	if len(r) <= oldRecord {
		return 0
	}
	return int(binary.LittleEndian.Uint16(r[0x80:]))
}

// Same reports whether two records of one inode number are equal except for the time of the last
// access and, if that differs, the checksum.
func (r Record) Same(other Record) bool {
	if bytes.Equal(r, other) {
		return true
	}
	if len(r) != len(other) || r.extra() != other.extra() {
		return false
	}
	a, b := slices.Clone(r), slices.Clone(other)
	mask := func(from, to int) (differed bool) {
		differed = !bytes.Equal(a[from:to], b[from:to])
		clear(a[from:to])
		clear(b[from:to])
		return differed
	}
	accessed := mask(0x8, 0xC) // i_atime
	if r.extra() >= 0x90-0x80 && len(r) >= 0x90 {
		accessed = mask(0x8C, 0x90) || accessed // i_atime_extra
	}
	if !accessed {
		return false // the checksum alone
	}
	mask(0x7C, 0x7E) // i_checksum_lo
	if r.extra() >= 0x84-0x80 && len(r) >= 0x84 {
		mask(0x82, 0x84) // i_checksum_hi
	}
	return bytes.Equal(a, b)
}

// Record returns a copy of the record of an inode, with a number from 1 to [FileSystem.Inodes].
func (f *FileSystem) Record(inode uint32) (Record, error) {
	if inode == 0 || uint64(inode) > f.inodes {
		return nil, fmt.Errorf("inode %d: %w: there are %d", inode, ErrDamaged, f.inodes)
	}
	group, at := (inode-1)/f.inodesPerGroup, uint64((inode-1)%f.inodesPerGroup)
	perBlock := uint64(f.blockBytes / f.inodeBytes)
	block, err := f.cached(&f.records, f.groups[group].InodeTable+at/perBlock)
	if err != nil {
		return nil, fmt.Errorf("record of inode %d: %w", inode, err)
	}
	return slices.Clone(Record(block[at%perBlock*uint64(f.inodeBytes):][:f.inodeBytes])), nil
}

// InodesIn returns the first of the inodes whose records are in a block of the inode tables, and
// their number, or 0 if the block is not in a table. Each record has [FileSystem.RecordBytes]
// bytes.
func (f *FileSystem) InodesIn(block uint64) (first uint32, count int) {
	n, found := slices.BinarySearchFunc(f.tables, block, func(group uint32, block uint64) int {
		table := f.groups[group].InodeTable
		switch {
		case table > block:
			return 1
		case table+f.tableBlocks() <= block:
			return -1
		}
		return 0
	})
	if !found {
		return 0, 0
	}
	group := f.tables[n]
	perBlock := f.blockBytes / f.inodeBytes
	return group*f.inodesPerGroup + uint32(block-f.groups[group].InodeTable)*perBlock + 1, int(perBlock)
}

// RecordBytes returns the size of a record.
func (f *FileSystem) RecordBytes() int { return int(f.inodeBytes) }

// Records yields the records of all allocated inodes in the order of their numbers, until yield
// returns an error. A record is valid only during the call.
func (f *FileSystem) Records(yield func(inode uint32, r Record) error) error {
	const most = 64 << 10
	perRead := max(1, most/uint64(f.blockBytes))
	buffer := make([]byte, perRead*uint64(f.blockBytes))
	perBlock := f.blockBytes / f.inodeBytes
	for n, g := range f.groups {
		if g.flags&inodesUninitialized != 0 {
			continue
		}
		used := f.inodesPerGroup - g.unusedInodes
		for at := uint32(0); at < used; at += uint32(perRead) * perBlock {
			blocks := min(perRead, uint64(used-at+perBlock-1)/uint64(perBlock))
			piece := buffer[:blocks*uint64(f.blockBytes)]
			if err := f.read(piece, g.InodeTable+uint64(at/perBlock)); err != nil {
				return fmt.Errorf("inodes of group %d: %w", n, err)
			}
			for i := range min(uint32(blocks)*perBlock, used-at) {
				inode := uint32(n)*f.inodesPerGroup + at + i + 1
				if allocated, err := f.Allocated(inode); err != nil || !allocated {
					if err != nil {
						return err
					}
					continue
				}
				if err := yield(inode, Record(piece[i*f.inodeBytes:][:f.inodeBytes])); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Reserved reports whether an inode is the file system's own and has no name, such as the journal
// and quotas. Its number is below 11, or in the superblock.
func (f *FileSystem) Reserved(inode uint32) bool {
	if inode < firstOrdinaryInode {
		return inode != rootInode
	}
	return inode == f.userQuota || inode == f.groupQuota || inode == f.projectQuota || inode == f.orphanFile
}

// ReservedInodes returns the numbers of the inodes that are [FileSystem.Reserved].
func (f *FileSystem) ReservedInodes() []uint32 {
	var inodes []uint32
	for n := uint32(1); n < firstOrdinaryInode; n++ {
		if f.Reserved(n) {
			inodes = append(inodes, n)
		}
	}
	for _, n := range []uint32{f.userQuota, f.groupQuota, f.projectQuota, f.orphanFile} {
		if n >= firstOrdinaryInode && uint64(n) <= f.inodes {
			inodes = append(inodes, n)
		}
	}
	return inodes
}
