// Package ext4 reads the layout of an ext4 through an io.ReaderAt: the blocks of its own structures
// and of its inodes, the records of the inodes, and which blocks are in use. The file system must
// not be written to. The package reads no names; the kernel lists directories.
//
// The layout is that of the kernel's Documentation/filesystems/ext4 and fs/ext4/ext4.h. For a
// feature that would change it, [Open] returns errors.ErrUnsupported.
//
// It trusts nothing: it checks that block numbers are within the file system. Every walk ends, even
// on hostile blocks, and memory grows only with the number of groups.
package ext4
