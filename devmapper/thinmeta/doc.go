// Package thinmeta reads the metadata of a thin pool: its volumes, the mappings of their blocks,
// and the blocks in which two volumes differ. It reads the kernel's format on disk through an
// io.ReaderAt, and never writes. The format is in drivers/md/dm-thin-metadata.c, and in dm-btree.c
// and dm-block-manager.c in drivers/md/persistent-data.
//
// It reads whole blocks of 4096 bytes at multiples of 4096, into memory of any alignment. The
// blocks must not change meanwhile. So read the metadata of an active pool from a metadata snapshot
// ([OpenSnapshot]), or between two commits ([Metadata.Current]). Use direct I/O
// ([github.com/thinsnap/thinsnap/devmapper/blockdev.OpenDirect]), because the page cache does not
// have the kernel's writes.
//
// It trusts nothing: it checks the checksum and the number of each block. Every walk ends, even on
// hostile blocks, and takes the memory of only a few blocks ([Metadata.MappedBlocks] and
// [Metadata.Exclusive] take more).
package thinmeta
