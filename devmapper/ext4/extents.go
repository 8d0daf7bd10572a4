package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	extentMagic    = 0xF30A
	maxDepth       = 5
	extentEntry    = 12
	maxWritten     = 32768 // EXT_INIT_MAX_LEN; a longer extent is unwritten
	resizeInode    = 7
	doubleIndirect = 13
)

// Extent is a run of blocks of an inode.
type Extent struct {
	Span
	// Logical is the number of its first block in the file.
	Logical uint32
	// Unwritten is true for blocks that are allocated, and read as zeros.
	Unwritten bool
	// Node is true for a block of the extent tree itself.
	Node bool
}

// Extents yields the blocks of an inode, including those of its extent tree, until yield returns an
// error. It leaves out the block of attributes ([Record.AttributeBlock]). It returns
// errors.ErrUnsupported for an inode that maps its blocks without extents.
//
// It returns [ErrDamaged] when all calls together have read more tree nodes than the file system
// has blocks: inodes then share trees.
func (f *FileSystem) Extents(r Record, yield func(Extent) error) error {
	tree, err := f.tree(r)
	if tree == nil || err != nil {
		return err
	}
	return f.node(tree, -1, yield)
}

// tree returns the root of the extent tree, or nil if the inode has no blocks.
func (f *FileSystem) tree(r Record) ([]byte, error) {
	root := r[blockOffset:blockEnd]
	typ := r.Mode() & modeType
	switch {
	case r.flags()&flagInlineData != 0:
		return nil, nil
	case r.flags()&flagExtents != 0:
		if typ == modeSymlink && r.size() < fastSymlink && binary.LittleEndian.Uint16(root) != extentMagic {
			return nil, nil
		}
		return root, nil
	case typ == modeFIFO, typ == modeCharacter, typ == modeBlock, typ == modeSocket:
		return nil, nil
	case typ == modeSymlink && r.size() < fastSymlink && f.onlyAttributes(r):
		return nil, nil
	}
	for _, b := range root {
		if b != 0 {
			return nil, fmt.Errorf("an inode without extents: %w", errors.ErrUnsupported)
		}
	}
	return nil, nil
}

// onlyAttributes reports whether an inode has no blocks besides that of its attributes.
func (f *FileSystem) onlyAttributes(r Record) bool {
	sectors := uint64(binary.LittleEndian.Uint32(r[0x1C:])) | uint64(binary.LittleEndian.Uint16(r[0x74:]))<<32
	if r.AttributeBlock() != 0 {
		return sectors == uint64(f.blockBytes)/512
	}
	return sectors == 0
}

// node reads one node of an extent tree: struct ext4_extent_header and its entries. depth is the
// depth that its parent expects, or -1.
func (f *FileSystem) node(raw []byte, depth int, yield func(Extent) error) error {
	le := binary.LittleEndian
	entries, most, own := int(le.Uint16(raw[2:])), int(le.Uint16(raw[4:])), int(le.Uint16(raw[6:]))
	if le.Uint16(raw) != extentMagic || entries > most || most > len(raw)/extentEntry-1 || own > maxDepth ||
		depth >= 0 && own != depth {
		return fmt.Errorf("%w: an extent tree node of depth %d with %d of %d entries", ErrDamaged, own, entries, most)
	}
	var child []byte
	for n := range entries {
		entry := raw[extentEntry*(n+1):][:extentEntry]
		e := Extent{Logical: le.Uint32(entry)}
		if own == 0 {
			length := le.Uint16(entry[4:])
			if e.Unwritten = length > maxWritten; e.Unwritten {
				length -= maxWritten
			}
			e.Span = Span{uint64(le.Uint16(entry[6:]))<<32 | uint64(le.Uint32(entry[8:])), uint64(length)}
		} else {
			e.Span = Span{uint64(le.Uint16(entry[8:]))<<32 | uint64(le.Uint32(entry[4:])), 1}
			e.Node = true
		}
		if !f.holds(e.Span) {
			return fmt.Errorf("%w: an extent of %d blocks at block %d", ErrDamaged, e.Length, e.Start)
		}
		if err := yield(e); err != nil {
			return err
		}
		if own == 0 {
			continue
		}
		if f.nodes == 0 {
			return fmt.Errorf("%w: it has more extent tree nodes than blocks", ErrDamaged)
		}
		f.nodes--
		if child == nil {
			child = make([]byte, f.blockBytes)
		}
		if err := f.read(child, e.Start); err != nil {
			return fmt.Errorf("extent tree node: %w", err)
		}
		if err := f.node(child, own-1, yield); err != nil {
			return err
		}
	}
	return nil
}

// ReservedBlocks yields the blocks of the file system's own inodes ([FileSystem.ReservedInodes]).
// For the resize inode it yields the one block that leads to the blocks reserved for descriptors;
// those are among [FileSystem.Structures].
func (f *FileSystem) ReservedBlocks(yield func(Extent) error) error {
	for _, inode := range f.ReservedInodes() {
		r, err := f.Record(inode)
		if err != nil {
			return err
		}
		if allocated, err := f.Allocated(inode); err != nil || !allocated || r.Mode() == 0 {
			if err != nil {
				return err
			}
			continue
		}
		if inode == resizeInode {
			err = f.resizeBlock(r, yield)
		} else {
			err = f.Extents(r, yield)
		}
		if err != nil {
			return fmt.Errorf("blocks of the reserved inode %d: %w", inode, err)
		}
	}
	return nil
}

func (f *FileSystem) resizeBlock(r Record, yield func(Extent) error) error {
	block := uint64(binary.LittleEndian.Uint32(r[blockOffset+4*doubleIndirect:]))
	if block == 0 {
		return nil
	}
	if s := (Span{block, 1}); f.holds(s) {
		return yield(Extent{Span: s, Node: true})
	}
	return fmt.Errorf("%w: block %d", ErrDamaged, block)
}

// Parent returns the inode of a directory's parent, from its entry "..".
func (f *FileSystem) Parent(r Record) (uint32, error) {
	le := binary.LittleEndian
	if !r.Directory() {
		return 0, fmt.Errorf("%w: the inode is not a directory", ErrDamaged)
	}
	if r.flags()&flagInlineData != 0 {
		return le.Uint32(r[blockOffset:]), nil
	}
	first := uint64(0)
	err := f.Extents(r, func(e Extent) error {
		if !e.Node && e.Logical == 0 {
			first = e.Start
			return errFound
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		return 0, err
	}
	if first == 0 {
		return 0, fmt.Errorf("%w: a directory without a first block", ErrDamaged)
	}
	block := make([]byte, f.blockBytes)
	if err := f.read(block, first); err != nil {
		return 0, fmt.Errorf("directory: %w", err)
	}
	// The entry "." has 12 bytes: inode, length 12, the name's length 1.
	if dots := block[12:24]; le.Uint16(block[4:]) == 12 && dots[6] == 2 && string(dots[8:10]) == ".." {
		return le.Uint32(dots), nil
	}
	return 0, fmt.Errorf("%w: a directory that does not begin with its parent", ErrDamaged)
}

var errFound = errors.New("found")
