// Package ext4 reads the layout of an ext4 that nothing writes to, through an
// io.ReaderAt: which blocks its own structures have, the records of its inodes,
// the blocks that an inode has, and which blocks are in use. It reads no names:
// the kernel lists directories.
//
// The layout is that of Documentation/filesystems/ext4 and fs/ext4/ext4.h of the
// kernel. A file system with a feature that would change what is read here is
// errors.ErrUnsupported.
//
// It trusts nothing: block numbers are within the file system, a walk of any
// blocks ends, and memory grows with the number of groups only.
package ext4
