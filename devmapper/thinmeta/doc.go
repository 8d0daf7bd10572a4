// Package thinmeta reads the metadata of a thin pool as the kernel keeps it on
// disk (drivers/md/dm-thin-metadata.c, and dm-btree.c and dm-block-manager.c in
// drivers/md/persistent-data): which volumes a pool has, and which block of the
// pool holds which block of a volume. It only reads, through an io.ReaderAt.
//
// The reader is asked for whole blocks of 4096 bytes at multiples of 4096, into
// memory of any alignment. What is read must not change meanwhile. So the
// metadata of a pool that is active is read through a metadata snapshot
// ([OpenSnapshot]), and past the page cache, which does not see what the kernel
// writes; [github.com/thinsnap/thinsnap/devmapper/blockdev.OpenDirect] does that.
//
// Nothing that is read is trusted: each block's checksum and number are held
// against where it was read from, and whatever the blocks say, a walk ends and
// needs no more memory than a few blocks.
package thinmeta
