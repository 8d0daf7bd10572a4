package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
)

// Direct reads a block device or a file with O_DIRECT: the page cache does not have the kernel's
// own writes to a device. It is safe for concurrent use; reads run one at a time.
type Direct struct {
	file *os.File
	mu   sync.Mutex
	page []byte // aligned; nil after Close
}

// OpenDirect opens a device or file for reading. It returns EINVAL if a file's file system has no
// direct I/O.
func OpenDirect(path string) (*Direct, error) {
	file, err := devmapper.OpenFile(path, unix.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return nil, fmt.Errorf("open for direct reading: %w", err)
	}
	return &Direct{file: file, page: devmapper.DirectBuffer()}, nil
}

// ReadAt fills p from an offset in bytes; neither has to be aligned. At the end
// of the device it returns fewer bytes and io.EOF.
func (d *Direct) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", d.file.Name(), offset, unix.EINVAL)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.page == nil {
		return 0, fmt.Errorf("read %s: %w", d.file.Name(), os.ErrClosed)
	}
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		skip := int(at % devmapper.DirectBytes)
		n, err := d.readPage(at - int64(skip))
		if err != nil {
			return done, fmt.Errorf("read %s at %d: %w", d.file.Name(), at, err)
		}
		if n <= skip {
			return done, io.EOF
		}
		done += copy(p[done:], d.page[skip:n])
	}
	return done, nil
}

// readPage reads once: at the end of a file, os.File would read again from an unaligned offset.
func (d *Direct) readPage(offset int64) (int, error) {
	for {
		n, err := unix.Pread(int(d.file.Fd()), d.page, offset)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Close closes the device. Later reads return os.ErrClosed.
func (d *Direct) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.page == nil {
		return fmt.Errorf("close %s: %w", d.file.Name(), os.ErrClosed)
	}
	err := d.file.Close()
	d.page = nil
	if err != nil {
		return fmt.Errorf("close %s: %w", d.file.Name(), err)
	}
	return nil
}
