package filesystem

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of the ioctls that golang.org/x/sys/unix lacks.
const (
	ext4IocResizeFS    = 0x40086610 // _IOW('f', 16, __u64), Documentation/filesystems/ext4/ and fs/ext4/ext4.h
	xfsIocFSGrowFSData = 0x4010586e // _IOW('X', 110, struct xfs_growfs_data), fs/xfs/libxfs/xfs_fs.h
	fiTrim             = 0xc0185879 // _IOWR('X', 121, struct fstrim_range), include/uapi/linux/fs.h
	fsIocFiemap        = 0xc020660b // _IOWR('f', 11, struct fiemap), include/uapi/linux/fs.h
)

// xfsGrowFSData is struct xfs_growfs_data of fs/xfs/libxfs/xfs_fs.h.
type xfsGrowFSData struct {
	newBlocks   uint64
	imaxPercent uint32
	_           uint32
}

// resize grows the mounted file system of root to the given number of blocks. The programs for it,
// resize2fs and xfs_growfs, need a mount point, which a detached mount lacks.
func resize(root *os.File, sb Superblock, blocks uint64) error {
	if sb.Type == XFS {
		// The ioctl also sets the limit on the share of inodes: keep it.
		arg := xfsGrowFSData{newBlocks: blocks, imaxPercent: sb.imaxPercent}
		return ioctl(root, xfsIocFSGrowFSData, unsafe.Pointer(&arg))
	}
	return ioctl(root, ext4IocResizeFS, unsafe.Pointer(&blocks))
}

// fsTrimRange is struct fstrim_range of include/uapi/linux/fs.h.
type fsTrimRange struct {
	start, length, minLength uint64
}

// trim makes the mounted file system of root discard its unused blocks in a range, and returns
// their bytes.
func trim(root *os.File, start, length uint64) (uint64, error) {
	arg := fsTrimRange{start: start, length: length}
	err := ioctl(root, fiTrim, unsafe.Pointer(&arg))
	return arg.length, err
}

// fiemap is struct fiemap of include/uapi/linux/fiemap.h, with room for some extents.
type fiemap struct {
	start, length        uint64
	flags, mapped, count uint32
	_                    uint32
	extents              [64]struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
}

func listExtents(f *os.File, request *fiemap) error {
	return ioctl(f, fsIocFiemap, unsafe.Pointer(request))
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
