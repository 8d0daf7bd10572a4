package blockdev

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// discard is BLKDISCARD of an offset and a length (block/ioctl.c), for which golang.org/x/sys/unix
// has no function.
func discard(f *os.File, offset, length uint64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	span := [2]uint64{offset, length}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// readExtents is FS_IOC_FIEMAP.
func readExtents(f *os.File, arg *fiemap) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, fsIocFiemap, uintptr(unsafe.Pointer(arg)))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}
