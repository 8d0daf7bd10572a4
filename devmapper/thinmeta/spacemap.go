package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	bitmapSalt = 240779 // BITMAP_CSUM_XOR
	indexSalt  = 160478 // INDEX_CSUM_XOR

	bitmapHeaderBytes = 16 // struct disk_bitmap_header
	countsPerBitmap   = (blockBytes - bitmapHeaderBytes) * 4
	manyReferences    = 3 // in a bitmap: the count is in the tree of counts

	indexHeaderBytes = 16 // of struct disk_metadata_index
	indexEntryBytes  = 16 // struct disk_index_entry
	metadataBitmaps  = 255
	countBytes       = 4

	// bitmapsKept is the number of cached bitmaps, each of which is a block.
	bitmapsKept = 1024
)

// spaceMap has the number of references to each block of the pool's data, or of its metadata
// (drivers/md/persistent-data/dm-space-map-common.c): two bits for each block, and a tree for
// larger counts.
type spaceMap struct {
	r       io.ReaderAt
	root    spaceMapRoot
	data    bool // of the data, not of the metadata
	bitmaps map[uint64]*block
}

// spaceMapRoot is a struct disk_sm_root.
type spaceMapRoot struct {
	blocks  uint64
	bitmaps uint64 // root of the tree of index entries; for metadata the block with all of them
	counts  uint64 // root of the tree of counts
}

func decodeSpaceMapRoot(b []byte) spaceMapRoot {
	return spaceMapRoot{
		blocks:  binary.LittleEndian.Uint64(b),
		bitmaps: binary.LittleEndian.Uint64(b[16:]), // after nr_allocated
		counts:  binary.LittleEndian.Uint64(b[24:]),
	}
}

func (s *spaceMap) count(ctx context.Context, number uint64) (uint32, error) {
	if number >= s.root.blocks {
		return 0, fmt.Errorf("block %d: %w: no reference count, which only the first %d blocks have", number, ErrDamaged,
			s.root.blocks)
	}
	b, err := s.bitmap(ctx, number/countsPerBitmap)
	if err != nil {
		return 0, fmt.Errorf("reference count of block %d: %w", number, err)
	}
	i := number % countsPerBitmap
	bits := b[bitmapHeaderBytes+i/4] >> (i % 4 * 2)
	if n := uint32(bits&1)<<1 | uint32(bits>>1&1); n != manyReferences { // sm_lookup_bitmap: the high bit first
		return n, nil
	}
	e, err := tree{r: s.r, root: s.root.counts, valueBytes: countBytes}.get(ctx, number)
	if err == nil && e.value == nil {
		err = fmt.Errorf("block %d: %w: it is not in the tree", s.root.counts, ErrDamaged)
	}
	if err != nil {
		return 0, fmt.Errorf("reference count of block %d: %w", number, err)
	}
	return binary.LittleEndian.Uint32(e.value), nil
}

func (s *spaceMap) bitmap(ctx context.Context, index uint64) (*block, error) {
	if b := s.bitmaps[index]; b != nil {
		return b, nil
	}
	number, err := s.bitmapBlock(ctx, index)
	if err != nil {
		return nil, err
	}
	b := new(block)
	if err := b.readVerified(s.r, number, bitmapSalt); err != nil {
		return nil, err
	}
	if len(s.bitmaps) >= bitmapsKept || s.bitmaps == nil {
		s.bitmaps = make(map[uint64]*block)
	}
	s.bitmaps[index] = b
	return b, nil
}

func (s *spaceMap) bitmapBlock(ctx context.Context, index uint64) (uint64, error) {
	if s.data {
		e, err := tree{r: s.r, root: s.root.bitmaps, valueBytes: indexEntryBytes}.get(ctx, index)
		if err == nil && e.value == nil {
			err = fmt.Errorf("block %d: %w: bitmap %d is not in the tree", s.root.bitmaps, ErrDamaged, index)
		}
		if err != nil {
			return 0, err
		}
		return binary.LittleEndian.Uint64(e.value), nil
	}
	var b block
	if err := b.readVerified(s.r, s.root.bitmaps, indexSalt); err != nil {
		return 0, err
	}
	if index >= metadataBitmaps {
		return 0, fmt.Errorf("block %d: %w: it has no bitmap %d", s.root.bitmaps, ErrDamaged, index)
	}
	return b.u64(indexHeaderBytes + int(index)*indexEntryBytes), nil
}
