package thinmeta

import (
	"fmt"
	"io"
)

// Metadata is the metadata below one superblock: that of the last commit, or of a metadata
// snapshot. It is safe for concurrent use if the reader is.
type Metadata struct {
	r          io.ReaderAt
	superblock Superblock
}

// Open reads the metadata of an inactive pool, or the last commit of an active one. For an active
// pool, call [Metadata.Current] after reading. It returns [ErrNoMetadata] if there is none, and
// errors.ErrUnsupported if it has unknown incompatible features.
func Open(r io.ReaderAt) (*Metadata, error) { return open(r, 0, true) }

// OpenDamaged is [Open] for metadata whose superblock may have a wrong checksum, and so wrong
// fields. The blocks below the superblock are verified.
func OpenDamaged(r io.ReaderAt) (*Metadata, error) { return open(r, 0, false) }

// OpenSnapshot reads the metadata snapshot at a block, from the pool's status
// (thin.PoolStatus.HeldRoot). The pool may be active. The snapshot must not be released meanwhile:
// the pool then overwrites it. It returns [ErrNoMetadata] if there is none at the block; block 0
// means that the pool has none.
func OpenSnapshot(r io.ReaderAt, block uint64) (*Metadata, error) {
	if block == 0 {
		return nil, fmt.Errorf("open a metadata snapshot: the pool has none: %w", ErrNoMetadata)
	}
	return open(r, block, true)
}

func open(r io.ReaderAt, block uint64, verify bool) (*Metadata, error) {
	s, err := readSuperblock(r, block, verify)
	if err != nil {
		return nil, fmt.Errorf("superblock in block %d: %w", block, err)
	}
	return &Metadata{r: r, superblock: s}, nil
}

// Current reports whether the pool has not committed since [Open]. If so, all reads so far were
// consistent: the kernel does not overwrite the blocks below a superblock before it writes the next
// superblock.
func (m *Metadata) Current() (bool, error) {
	s, err := readSuperblock(m.r, 0, true)
	if err != nil {
		return false, fmt.Errorf("superblock: %w", err)
	}
	return s == m.superblock, nil
}

// Superblock returns the superblock that the metadata was opened with.
func (m *Metadata) Superblock() Superblock { return m.superblock }

func (m *Metadata) details() tree {
	return tree{r: m.r, root: m.superblock.detailsRoot, valueBytes: detailsBytes}
}

// mappingTrees returns the tree of the roots of the volumes' trees.
func (m *Metadata) mappingTrees() tree {
	return tree{r: m.r, root: m.superblock.mappingRoot, valueBytes: pointerBytes}
}
