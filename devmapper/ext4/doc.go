// Package ext4 reads the layout of an ext4 that is not being written to, through an io.ReaderAt:
// the blocks of its own structures, the records of its inodes, the blocks of an inode, and which
// blocks are in use. It reads no names; the kernel lists directories.
//
// The layout is that of the kernel's Documentation/filesystems/ext4 and fs/ext4/ext4.h. A file
// system with a feature that would change this layout is errors.ErrUnsupported.
//
// It trusts nothing: it checks that block numbers are within the file system. A walk of any blocks
// ends, and memory grows only with the number of groups.
package ext4
