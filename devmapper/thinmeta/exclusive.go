package thinmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// ErrNoCounts is returned if the reference counts are missing or misleading. A metadata snapshot
// has none. In a pool with a metadata snapshot, they include its references to metadata blocks.
var ErrNoCounts = errors.New("the pool has a metadata snapshot")

// Exclusive returns the number of a volume's blocks, from block first on, that no other volume
// maps: those that the pool gets back when the volume is deleted. Volumes of besides count as
// deleted if they have the volume's mapping tree, as its snapshots have before the first write
// to either. It returns [ErrNoDevice] if there is no such volume, and ErrNoCounts while the pool
// has a metadata snapshot.
//
// It stops after reading the given number of metadata blocks, but always makes progress. It returns
// the volume's block to continue from, or more as false at the end. It skips shared parts of the
// tree.
func (m *Metadata) Exclusive(
	ctx context.Context, id uint32, besides []uint32, first uint64, blocks int,
) (count, next uint64, more bool, err error) {
	count, next, more, err = m.exclusive(ctx, id, besides, first, blocks)
	if err != nil {
		return 0, 0, false, fmt.Errorf("count the exclusive blocks of volume %d: %w", id, err)
	}
	return count, next, more, nil
}

func (m *Metadata) exclusive(
	ctx context.Context, id uint32, besides []uint32, first uint64, blocks int,
) (count, next uint64, more bool, err error) {
	// A metadata snapshot has no roots of space maps (__reserve_metadata_snap in
	// dm-thin-metadata.c).
	if m.superblock.HeldRoot != 0 || m.superblock.dataMap.blocks == 0 {
		return 0, 0, false, ErrNoCounts
	}
	_, t, err := m.device(ctx, id)
	if err != nil {
		return 0, 0, false, err
	}
	rootReferences := uint32(1)
	for _, other := range besides {
		e, err := m.mappingTrees().get(ctx, uint64(other))
		if err != nil {
			return 0, 0, false, err
		}
		if e.value != nil && other != id && binary.LittleEndian.Uint64(e.value) == t.root {
			rootReferences++
		}
	}
	r := &countingReader{ReaderAt: m.r}
	nodes := &spaceMap{r: r, root: m.superblock.metadataMap}
	data := &spaceMap{r: r, root: m.superblock.dataMap, data: true}
	var failed error
	t.r, t.skip = r, func(number uint64) bool {
		var n uint32
		if failed == nil {
			n, failed = references(ctx, nodes, number)
		}
		return failed != nil || n > 1 && (number != t.root || n > rootReferences)
	}
	for e, err := range t.entries(ctx, first, math.MaxUint64) {
		switch {
		case err != nil || failed != nil:
			return 0, 0, false, errors.Join(failed, err)
		case r.reads >= blocks && e.key > first:
			return count, e.key, true, nil
		}
		n, err := references(ctx, data, binary.LittleEndian.Uint64(e.value)>>timeBits)
		if err != nil {
			return 0, 0, false, err
		}
		if n == 1 {
			count++
		}
	}
	return count, 0, false, failed
}

// references returns the number of references to a used block.
func references(ctx context.Context, m *spaceMap, number uint64) (uint32, error) {
	n, err := m.count(ctx, number)
	if err == nil && n == 0 {
		err = fmt.Errorf("block %d: %w: it is used but counts as free", number, ErrDamaged)
	}
	return n, err
}

type countingReader struct {
	io.ReaderAt
	reads int
}

func (r *countingReader) ReadAt(p []byte, offset int64) (int, error) {
	r.reads++
	return r.ReaderAt.ReadAt(p, offset)
}
