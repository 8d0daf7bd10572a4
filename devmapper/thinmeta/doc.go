// Package thinmeta reads the metadata of a thin pool in the kernel's format on
// disk (drivers/md/dm-thin-metadata.c, and dm-btree.c and dm-block-manager.c in
// drivers/md/persistent-data): the volumes of a pool, and the mapping of their
// blocks to the pool's, and in which blocks two volumes differ. It only reads,
// through an io.ReaderAt.
//
// It reads whole blocks of 4096 bytes at multiples of 4096, into memory of any
// alignment. The blocks must not change meanwhile. So the metadata of an active
// pool is read from a metadata snapshot ([OpenSnapshot]), or between two commits
// ([Metadata.Current]), and with direct I/O, because the page cache does not have
// the kernel's writes:
// [github.com/thinsnap/thinsnap/devmapper/blockdev.OpenDirect].
//
// It trusts nothing: it checks the checksum and the number of each block, and a
// walk of any blocks ends and needs the memory of a few blocks only.
package thinmeta
