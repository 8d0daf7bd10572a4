package blockdev

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// discardChunk is how much, in bytes, is discarded between two looks at the context.
// The kernel does not interrupt a discard, not even for a process that is killed, and
// what is mapped to a file takes it a few milliseconds a MiB on a slow machine.
const discardChunk = 128 << 20

// Size gives the size in bytes of a block device (or a file).
func Size(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("size of a block device: %w", err)
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of a block device: %w", err)
	}
	return uint64(size), nil
}

// Flush writes what the page cache holds of a block device and empties the
// device's own write cache. On a thin volume the pool commits its metadata.
func Flush(path string) error {
	// Read-only: closing a descriptor that could write makes udev look at
	// the device again.
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("flushing a block device: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flushing a block device: %w", err)
	}
	return nil
}

// Discard tells a block device that length bytes at offset are not needed any
// more (BLKDISCARD); both are multiples of 512 and lie in the device (EINVAL).
// A device that is mounted, or used by another, is refused (EBUSY); one that
// cannot discard is EOPNOTSUPP. It works in pieces of 128 MiB and stops between
// two of them when ctx ends, with ctx.Err().
func Discard(ctx context.Context, path string, offset, length uint64) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("discarding: %w", err)
	}
	defer func() { _ = f.Close() }()
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("discarding %s: %d bytes left: %w", path, length, err)
		}
		n := min(length, discardChunk)
		if err := discard(f, offset, n); err != nil {
			return fmt.Errorf("discarding %d bytes at %d of %s: %w", n, offset, path, err)
		}
		offset += n
		length -= n
	}
	return nil
}

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

// Path gives the node in /dev of the block device with a number, "MAJOR:MINOR",
// by the name that the kernel has for it.
func Path(number string) (string, error) {
	target, err := os.Readlink(filepath.Join("/sys/dev/block", number))
	if err != nil {
		return "", fmt.Errorf("finding block device %s: %w", number, err)
	}
	// sysfs writes "!" for "/" in names such as cciss/c0d0.
	return filepath.Join("/dev", strings.ReplaceAll(filepath.Base(target), "!", "/")), nil
}
