package devmapper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// nodeWait limits the wait for devtmpfs, which normally creates /dev/dm-N before the ioctl
	// returns.
	nodeWait = 100 * time.Millisecond
	nodePoll = 2 * time.Millisecond
)

// nodes are the directories of the device nodes and of sysfs.
type nodes struct {
	dev string // /dev
	sys string // /sys
}

func hostNodes() nodes { return nodes{dev: "/dev", sys: "/sys"} }

// NodePath returns the path of a device's node, /dev/mapper/NAME.
func NodePath(name string) string { return hostNodes().path(name) }

// EnsureNode makes /dev/mapper/NAME a symbolic link to ../dm-N, as udev's rule does, unless that
// path already leads to the device. It replaces the path atomically, and creates /dev/dm-N if it is
// missing. A table must have been loaded into the device.
func EnsureNode(d Device) error {
	if err := hostNodes().ensure(d); err != nil {
		return fmt.Errorf("make the node of device %s: %w", d.Name, err)
	}
	return nil
}

// RemoveNode removes /dev/mapper/NAME, unless it leads to a live device with that name.
func RemoveNode(name string) error {
	if err := hostNodes().remove(name); err != nil {
		return fmt.Errorf("remove the node of device %s: %w", name, err)
	}
	return nil
}

func (n nodes) path(name string) string { return filepath.Join(n.dev, unix.DM_DIR, name) }

func (n nodes) ensure(d Device) error {
	base := "dm-" + strconv.FormatUint(uint64(d.Minor), 10)
	rdev := unix.Mkdev(d.Major, d.Minor)
	link := n.path(d.Name)
	if at, err := blockRdev(link); err == nil && at == rdev {
		return nil
	}
	if err := ensureBlockNode(filepath.Join(n.dev, base), rdev); err != nil {
		return err
	}
	// Without replace if possible: a crash between its two steps leaves the temporary name.
	err := os.Symlink("../"+base, link)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		err = os.Symlink("../"+base, link)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return replace(link, func(temporary string) error {
		return os.Symlink("../"+base, temporary)
	})
}

func (n nodes) remove(name string) error {
	link := n.path(name)
	rdev, err := blockRdev(link)
	if err == nil && n.nameOf(rdev) == name {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// nameOf returns the name of the live device with the given number, or "".
func (n nodes) nameOf(rdev uint64) string {
	number := fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
	name, err := ReadAttribute(filepath.Join(n.sys, "dev/block", number, "dm/name"))
	if err != nil {
		return ""
	}
	return name
}

// ensureBlockNode waits for the node of a block device. It creates the node if it does not appear,
// and replaces a node of another device.
func ensureBlockNode(path string, rdev uint64) error {
	at, err := blockRdev(path)
	for waited := time.Duration(0); errors.Is(err, fs.ErrNotExist) && waited < nodeWait; waited += nodePoll {
		time.Sleep(nodePoll)
		at, err = blockRdev(path)
	}
	if err == nil && at == rdev {
		return nil
	}
	return replace(path, func(temporary string) error {
		return unix.Mknod(temporary, unix.S_IFBLK|0o600, int(rdev))
	})
}

// blockRdev returns the number of the block device that path leads to.
func blockRdev(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: unix.ENOTBLK}
	}
	return st.Rdev, nil
}

// replace creates a file under a temporary name and renames it to path, so path
// always exists.
func replace(path string, create func(temporary string) error) error {
	temporary := fmt.Sprintf("%s/.%s.%d.%x", filepath.Dir(path), filepath.Base(path), os.Getpid(), time.Now().UnixNano())
	if err := create(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return nil
}
