package thinmeta

import "errors"

var (
	// ErrNoMetadata is matched when there is no superblock of a pool where one
	// was looked for.
	ErrNoMetadata = errors.New("no thin pool's metadata")
	// ErrDamaged is matched when a block contradicts its checksum, its place or
	// the other blocks. The error names the block.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrNoDevice is matched when the pool has no volume with the id.
	ErrNoDevice = errors.New("no such volume in the metadata")
)
