package devmapper

import (
	"errors"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenFile opens a file whose I/O needs no poller: a block device or a sysfs attribute. os.OpenFile
// registers each file with the runtime's poller, in up to five more system calls. The descriptor is
// closed on exec.
func OpenFile(path string, flag int) (*os.File, error) {
	fd, err := openPlain(path, flag)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func openPlain(path string, flag int) (fd int, err error) {
	for {
		fd, err = unix.Open(path, flag|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		default:
			return fd, nil
		}
	}
}

// DirectBytes is the size and the alignment of a read with O_DIRECT, on the device and in memory. A
// read from a device with larger sectors, which Linux supports since 6.15, returns EINVAL.
const DirectBytes = 4096

// DirectBuffer returns memory for one read with O_DIRECT.
func DirectBuffer() []byte {
	memory := make([]byte, 2*DirectBytes)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(memory))) % DirectBytes
	return memory[skip : skip+DirectBytes : skip+DirectBytes]
}

// ReadDirect reads the first DirectBytes of a device past the page cache, which the kernel first
// writes back. It takes three system calls.
func ReadDirect(path string) ([]byte, error) {
	fd, err := openPlain(path, unix.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for buffer := DirectBuffer(); ; {
		n, err := unix.Pread(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		default:
			return buffer[:n], nil
		}
	}
}

// attributeBytes is more than the size of any attribute that is read: a uuid, a name or a number.
const attributeBytes = 512

// ReadAttribute returns the text of a sysfs attribute, without the newline. It takes three system
// calls; os.ReadFile takes nine, and wakes the poller's thread. An attribute of more than 512 bytes
// is cut off.
func ReadAttribute(path string) (string, error) {
	fd, err := openPlain(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var text [attributeBytes]byte
	for {
		n, err := unix.Read(fd, text[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		default:
			return strings.TrimSuffix(string(text[:n]), "\n"), nil
		}
	}
}
