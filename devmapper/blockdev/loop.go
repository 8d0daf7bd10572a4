package blockdev

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	// attachTries limits the retries when other processes take the free loop
	// device before it is configured.
	attachTries      = 100
	defaultBlockSize = 512
	// nodeWait limits the wait for /dev/loopN after the kernel has created it.
	nodeWait = time.Second
	nodePoll = 2 * time.Millisecond
)

// LoopOptions configures how a file is attached.
type LoopOptions struct {
	// DirectIO bypasses the page cache of the file. It stays off, as Loop.DirectIO shows, if the
	// file system does not support it.
	DirectIO bool
	ReadOnly bool
	// BlockSize is the device's logical block size in bytes: a power of two, 512 up to the page
	// size; 0 means 512, not the kernel's default, which depends on the file's disk since Linux
	// 6.15.
	BlockSize uint32
}

// Loop is an open loop device.
type Loop struct {
	Path         string // /dev/loopN
	Major, Minor uint32
	DirectIO     bool
	file         *os.File
}

// LoopAttach attaches a file to a free loop device. It returns ELOOP for a symbolic link. The
// kernel detaches the file at the last close: by Close, or by the removal of a device on top. So a
// killed process leaves no unused loop device.
func LoopAttach(path string, o LoopOptions) (*Loop, error) {
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	backing, err := os.OpenFile(path, mode|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("attach a loop device: %w", err)
	}
	// The device has its own reference.
	defer func() { _ = backing.Close() }()
	for range attachTries {
		l, err := attachFree(backing, o)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attach a loop device to %s: %w", path, err)
		}
		return l, nil
	}
	return nil, fmt.Errorf("attach a loop device to %s: other processes took the free one, %d times: %w",
		path, attachTries, unix.EBUSY)
}

// Close closes the device. If nothing else uses it, the kernel detaches it.
func (l *Loop) Close() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("close %s: %w", l.Path, err)
	}
	return nil
}

// Number returns the device number as "MAJOR:MINOR", as tables name it.
func (l *Loop) Number() string { return fmt.Sprintf("%d:%d", l.Major, l.Minor) }

func attachFree(backing *os.File, o LoopOptions) (*Loop, error) {
	number, err := freeLoop()
	if err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/dev/loop%d", number)
	file, err := openNode(path, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	l, err := attachTo(file, backing, o)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	l.Path = path
	return l, nil
}

func attachTo(file, backing *os.File, o LoopOptions) (*Loop, error) {
	if err := configure(file, backing, o); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("read back the loop device: %w", err)
	}
	return &Loop{
		Major:    unix.Major(st.Rdev),
		Minor:    unix.Minor(st.Rdev),
		DirectIO: info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		file:     file,
	}, nil
}

// freeLoop returns the number of a free loop device, which another process may take first.
func freeLoop() (int, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return 0, fmt.Errorf("this kernel has no loop devices (`modprobe loop`): %w", err)
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = control.Close() }()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return 0, fmt.Errorf("find a free loop device: %w", err)
	}
	return number, nil
}

func openNode(path string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	for deadline := time.Now().Add(nodeWait); ; time.Sleep(nodePoll) {
		f, err := os.OpenFile(path, mode, 0)
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			return f, err
		}
	}
}

// configure attaches the file. EBUSY means that another process was faster.
func configure(file, backing *os.File, o LoopOptions) error {
	config := unix.LoopConfig{
		Fd: uint32(backing.Fd()), Size: cmp.Or(o.BlockSize, defaultBlockSize), Info: loopInfo(backing, o),
	}
	if o.DirectIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	err := unix.IoctlLoopConfigure(int(file.Fd()), &config)
	if errors.Is(err, unix.EINVAL) && o.DirectIO {
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(file.Fd()), &config)
	}
	return err
}

func loopInfo(backing *os.File, o LoopOptions) unix.LoopInfo64 {
	info := unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}
	if o.ReadOnly {
		info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	// For `losetup`; the kernel does not use it. The last byte stays 0.
	copy(info.File_name[:len(info.File_name)-1], backing.Name())
	return info
}
