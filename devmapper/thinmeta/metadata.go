package thinmeta

import (
	"fmt"
	"io"
)

// Metadata is what one superblock leads to: the metadata as it was at its last
// commit, or at a metadata snapshot. It is safe for concurrent use if the reader
// is.
type Metadata struct {
	r          io.ReaderAt
	superblock Superblock
}

// Open reads the metadata of a pool that is not active, or of one that is, where
// [Metadata.Current] tells later whether it was in vain. [ErrNoMetadata] if there
// is none, errors.ErrUnsupported if it has features that no kernel knew when this
// was written.
func Open(r io.ReaderAt) (*Metadata, error) { return open(r, 0, true) }

// OpenDamaged is [Open] for metadata whose superblock may contradict its checksum: what
// that says may be wrong then, but whatever it leads to is held against its own.
func OpenDamaged(r io.ReaderAt) (*Metadata, error) { return open(r, 0, false) }

// OpenSnapshot reads the metadata snapshot at a block, which the pool's status
// names (thin.PoolStatus.HeldRoot), of a pool that may be active. It is there
// until it is released; whoever reads on after that reads what the pool writes
// there next. [ErrNoMetadata] if there is none at the block; block 0 means that
// the pool has none.
func OpenSnapshot(r io.ReaderAt, block uint64) (*Metadata, error) {
	if block == 0 {
		return nil, fmt.Errorf("opening a metadata snapshot: the pool has none: %w", ErrNoMetadata)
	}
	return open(r, block, true)
}

func open(r io.ReaderAt, block uint64, sealed bool) (*Metadata, error) {
	s, err := readSuperblock(r, block, sealed)
	if err != nil {
		return nil, fmt.Errorf("superblock in block %d: %w", block, err)
	}
	return &Metadata{r: r, superblock: s}, nil
}

// Current tells of metadata that [Open] has opened whether the pool has committed
// nothing since. If so, what was read of it meanwhile is of one moment: until the
// superblock is written anew, the kernel leaves alone what the old one leads to.
func (m *Metadata) Current() (bool, error) {
	s, err := readSuperblock(m.r, 0, true)
	if err != nil {
		return false, fmt.Errorf("superblock: %w", err)
	}
	return s == m.superblock, nil
}

// Superblock is what the metadata says of the pool as a whole.
func (m *Metadata) Superblock() Superblock { return m.superblock }

func (m *Metadata) details() tree {
	return tree{r: m.r, root: m.superblock.detailsRoot, valueBytes: detailsBytes}
}

// volumes is the tree of the roots of the volumes' trees.
func (m *Metadata) volumes() tree {
	return tree{r: m.r, root: m.superblock.mappingRoot, valueBytes: pointerBytes}
}
