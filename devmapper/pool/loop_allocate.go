package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

const (
	// allocateStep limits one fallocate(2), which no signal interrupts, and during which nothing
	// can write to the file.
	allocateStep = 256 << 20
	// keepFree is the space that an allocation leaves free on the disk, at most a hundredth of it.
	// A failed fallocate(2) keeps its partial allocation, and others need the disk, too.
	keepFree        = 64 << 20
	keepFreeOfSmall = 100
	// leastGrowth is the least step by which a loop pool grows by itself: each step stalls the I/O
	// of all volumes for some milliseconds.
	leastGrowth = 16 << 20
)

// fileSystemName names the file systems that may have a pool's files (linux/magic.h).
func fileSystemName(magic uint32) string {
	names := map[uint32]string{
		unix.BTRFS_SUPER_MAGIC: "btrfs", unix.NFS_SUPER_MAGIC: "NFS", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.FUSE_SUPER_MAGIC: "FUSE", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "ZFS",
		unix.BCACHEFS_SUPER_MAGIC: "bcachefs", unix.CIFS_SUPER_MAGIC: "CIFS", unix.SMB2_SUPER_MAGIC: "SMB",
		unix.CEPH_SUPER_MAGIC: "Ceph",
	}
	if name, ok := names[magic]; ok {
		return name
	}
	return fmt.Sprintf("of type %#x", magic)
}

// noSpaceReason returns why a write to an allocated part of a file may find no space, or "" if it
// always finds space. File systems other than ext4 and xfs write to newly allocated space, or to a
// disk that is not theirs.
func noSpaceReason(f *os.File) string {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err.Error()
	}
	magic := uint32(fs.Type)
	if magic != unix.EXT4_SUPER_MAGIC && magic != unix.XFS_SUPER_MAGIC {
		return "the file system below it (" + fileSystemName(magic) + ") does not keep space that is allocated"
	}
	// An ext4 that was created as ext2 or ext3 can have files without extents.
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, MetadataBlockBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "the file system below it cannot allocate space"
	}
	return ""
}

// allocate allocates the holes in the first bytes of a file, which may be in use, and returns the
// bytes that it could not allocate. It asks only for the holes: XFS requires free space for the
// whole range, allocated or not (fs/xfs/xfs_bmap_util.c: xfs_alloc_file_space).
func allocate(ctx context.Context, f *os.File, bytes int64) (missing int64, err error) {
	holes, err := blockdev.Holes(f, bytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		holes, err = []blockdev.Hole{{Offset: 0, Length: bytes}}, nil
	}
	for _, hole := range holes {
		if err == nil {
			err = fallocate(ctx, f, hole.Offset, hole.Length)
		}
		if err != nil {
			missing += hole.Length
		}
	}
	return missing, err
}

func fallocate(ctx context.Context, f *os.File, offset, length int64) error {
	for end := offset + length; offset < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-offset, allocateStep)
		if err := requireFree(f, uint64(n)); err != nil {
			return err
		}
		if err := unix.Fallocate(int(f.Fd()), 0, offset, n); err != nil {
			return &os.PathError{Op: "allocate", Path: f.Name(), Err: err}
		}
		offset += n
	}
	return nil
}

// requireFree returns ENOSPC if the disk of a file has no room for the given number of bytes and
// keepFree.
func requireFree(f *os.File, bytes uint64) error {
	disk, err := statDisk(f.Name())
	if err != nil {
		return err
	}
	if disk.free < bytes+min(keepFree, disk.total/keepFreeOfSmall) {
		return &os.PathError{Op: "allocate", Path: f.Name(), Err: unix.ENOSPC}
	}
	return nil
}

// growFile extends a file to at least the given size in bytes. It allocates the new part, where the
// file system keeps allocated space. If it fails, the file keeps its old size.
func growFile(ctx context.Context, f *os.File, bytes int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() >= bytes {
		return err
	}
	if noSpaceReason(f) != "" {
		err = f.Truncate(bytes)
	} else if err = fallocate(ctx, f, info.Size(), bytes-info.Size()); err != nil {
		err = errors.Join(err, f.Truncate(info.Size()))
	}
	return err
}

// fill allocates the holes in the first bytes of the file.
func (b *backingFile) fill(ctx context.Context, bytes uint64) error {
	if b.allocated.Load() {
		return nil
	}
	f, err := os.OpenFile(b.path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	missing, err := allocate(ctx, f, int64(bytes))
	b.missing.Store(uint64(missing))
	if err == nil {
		err = f.Sync()
	}
	b.allocated.Store(err == nil)
	return err
}
