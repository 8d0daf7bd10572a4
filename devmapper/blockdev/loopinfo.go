package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// LoopState is the state of an attached loop device.
type LoopState struct {
	Path        string // node of the loop device
	BackingFile string // path of the file; it ends in " (deleted)" if the file is unlinked
	Device      uint64 // device of the file's file system, in the encoding of unix.Major and unix.Minor
	Inode       uint64 // of the file
	Offset      uint64 // of the device's first byte in the file
	SizeLimit   uint64 // bytes; 0 for none
	AutoClear   bool   // detached at the last close
	DirectIO    bool
	ReadOnly    bool
}

// SameFile reports whether the loop device is on the file of fi, a result of
// os.Stat. It compares inodes, not paths.
func (s LoopState) SameFile(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Dev == s.Device && st.Ino == s.Inode
}

// LoopInfoByNumber returns the state of the loop device with the given number, "MAJOR:MINOR".
func LoopInfoByNumber(number string) (LoopState, error) {
	path, err := Path(number)
	if err != nil {
		return LoopState{}, err
	}
	return LoopInfo(path)
}

// LoopInfo returns the state of a loop device, by the path of its node. It returns ENXIO if no file
// is attached.
func LoopInfo(dev string) (LoopState, error) {
	f, err := os.Open(dev)
	if err != nil {
		return LoopState{}, fmt.Errorf("state of a loop device: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return LoopState{}, fmt.Errorf("state of loop device %s: %w", dev, err)
	}
	// The ioctl returns at most 63 bytes of the path, and sysfs the whole path.
	number := fmt.Sprintf("loop%d", info.Number)
	path, err := os.ReadFile(filepath.Join("/sys/block", number, "loop/backing_file"))
	if err != nil {
		return LoopState{}, fmt.Errorf("state of loop device %s: %w", dev, err)
	}
	return LoopState{
		Path:        dev,
		BackingFile: strings.TrimSuffix(string(path), "\n"),
		Device:      info.Device,
		Inode:       info.Inode,
		Offset:      info.Offset,
		SizeLimit:   info.Sizelimit,
		AutoClear:   info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
		DirectIO:    info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		ReadOnly:    info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
	}, nil
}

// LoopSetCapacity sets the size of a loop device to the present size of its file.
func LoopSetCapacity(dev string) error {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("grow a loop device: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow loop device %s: %w", dev, err)
	}
	return nil
}

// Loops returns the state of all attached loop devices.
func Loops() ([]LoopState, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []LoopState
	for _, file := range files {
		state, err := LoopInfo(filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(file)))))
		switch {
		case errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist):
			continue // detached meanwhile
		case err != nil:
			return nil, err
		}
		all = append(all, state)
	}
	return all, nil
}

// LoopDetach detaches a loop device if it is still on the file of state. If the device is open, the
// kernel detaches it at the last close.
func LoopDetach(state LoopState) error {
	f, err := os.Open(state.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach a loop device: %w", err)
	}
	defer func() { _ = f.Close() }()
	// While it is open here, no other process can detach it and attach another file.
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach loop device %s: its state: %w", state.Path, err)
	}
	if info.Device != state.Device || info.Inode != state.Inode {
		return nil
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("detach loop device %s: %w", state.Path, err)
	}
	return nil
}
