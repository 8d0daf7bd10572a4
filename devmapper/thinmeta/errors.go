package thinmeta

import "errors"

var (
	// ErrNoMetadata is matched when a block is not the superblock of a pool.
	ErrNoMetadata = errors.New("no metadata of a thin pool")
	// ErrDamaged is matched when a block contradicts its checksum, its number or
	// other blocks. The error names the block.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrNoDevice is matched when the pool has no volume with the id.
	ErrNoDevice = errors.New("no such volume in the metadata")
)
