package ext4

import "errors"

var (
	// ErrNotExt4 is matched when there is no ext4 superblock.
	ErrNotExt4 = errors.New("not an ext4")
	// ErrDamaged is matched when the structures of the file system contradict each other.
	ErrDamaged = errors.New("the ext4 is damaged")
	// ErrUnclean is matched when the file system is not at rest: its journal must be replayed, it
	// was not unmounted, or the kernel found errors in it.
	ErrUnclean = errors.New("the ext4 is not clean")
)
