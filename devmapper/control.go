package devmapper

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// listBuffer fits the answers to most queries about many devices, and smallBuffer those about
	// one. They are small because the kernel copies the whole buffer.
	listBuffer  = 16 << 10
	smallBuffer = 1 << 10
	// maxBuffer limits a request and its answer: some 100,000 devices.
	maxBuffer = 16 << 20
)

// Control is an open device-mapper control device. It is safe for concurrent
// use. Calls need CAP_SYS_ADMIN.
type Control struct {
	file   *os.File
	closed atomic.Bool // the errors of a raw connection do not match os.ErrClosed
	calls  [opCount]atomic.Uint64
}

// Open opens /dev/mapper/control. It creates the node if it is missing and the kernel has
// device-mapper. Its error matches [ErrUnavailable] and names the remedy if the kernel has no
// device-mapper or access is denied.
func Open() (*Control, error) {
	file, err := openControl("/dev", "/proc/misc")
	if err != nil {
		return nil, err
	}
	return &Control{file: file}, nil
}

// Close closes the control device after the running calls have returned. Later
// calls fail with os.ErrClosed.
func (c *Control) Close() error {
	c.closed.Store(true)
	if err := c.file.Close(); err != nil {
		return fmt.Errorf("close the device-mapper control device: %w", err)
	}
	return nil
}

// Calls returns the number of ioctls issued so far, repetitions included.
func (c *Control) Calls() uint64 {
	var sum uint64
	for i := range c.calls {
		sum += c.calls[i].Load()
	}
	return sum
}

// CallsByCommand returns the number of ioctls issued so far by command: "create", "load", "resume"
// and so on. It leaves out commands that were never issued.
func (c *Control) CallsByCommand() map[string]uint64 {
	counts := make(map[string]uint64, opCount)
	for i := range c.calls {
		if n := c.calls[i].Load(); n > 0 {
			counts[op(i).String()] = n
		}
	}
	return counts
}

// call issues one request about one device, or about none. It repeats a query with a larger buffer
// while the answer does not fit.
func (c *Control) call(o op, h header, payload []byte, size int) (reply, error) {
	if uuid, by := strings.CutPrefix(h.name, uuidPrefix); by && o != opCreate {
		h.name, h.uuid = "", uuid
	}
	device := h.name
	if device == "" {
		device = h.uuid
	}
	if len(h.name) > maxNameLen || len(h.uuid) > maxUUIDLen {
		return reply{}, newError(o, device, unix.ENAMETOOLONG)
	}
	if hasNUL(h.name) || hasNUL(h.uuid) {
		return reply{}, newError(o, device, unix.EINVAL)
	}
	if headerSize+len(payload) > maxBuffer {
		return reply{}, newError(o, device, unix.EMSGSIZE)
	}
	for {
		buf := encodeRequest(h, payload, size)
		errno, err := c.ioctl(o, buf)
		switch {
		case err != nil:
			return reply{}, failure(o, device, err)
		case errno == unix.EINTR && (o == opSuspend || o == opResume):
			// The wait for I/O is interruptible, and the Go runtime sends
			// signals to its own threads.
			continue
		case errno != 0:
			return reply{}, newError(o, device, errno)
		}
		r, err := decodeReply(buf)
		if err != nil {
			return reply{}, failure(o, device, err)
		}
		// The kernel reports a full buffer by this flag, not by an error.
		if r.header.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			return r, nil
		}
		if o.changes() || len(buf) >= maxBuffer {
			return reply{}, newError(o, device, unix.EMSGSIZE)
		}
		size = min(2*len(buf), maxBuffer)
	}
}

// ioctl keeps the descriptor open during the call. The error is about the
// descriptor, the errno about the request.
func (c *Control) ioctl(o op, buf []byte) (errno unix.Errno, err error) {
	conn, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = conn.Control(func(fd uintptr) {
		c.calls[o].Add(1)
		errno = ioctl(fd, o, buf)
	})
	return errno, c.orClosed(err)
}

func (c *Control) orClosed(err error) error {
	if err != nil && c.closed.Load() {
		return os.ErrClosed
	}
	return err
}

func ioctl(fd uintptr, o op, buf []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(o.request().number), uintptr(unsafe.Pointer(&buf[0])))
	return errno
}
