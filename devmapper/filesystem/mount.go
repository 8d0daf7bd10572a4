package filesystem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mounted reports whether the file system on dev is mounted in any mount
// namespace: /sys/fs/ext4 or /sys/fs/xfs then has a directory with the kernel's
// name of the device.
func Mounted(dev, typ string) bool {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return false
	}
	// Without udev, dmsetup makes nodes that have a name of their own instead of the kernel's.
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join("/sys/fs", typ, filepath.Base(device)))
	return err == nil
}

// Mount mounts the file system on dev, which is mounted elsewhere already, at dir
// too. Bind mounts of dir can be read-only; a mount of the device can be read-only
// only if all are. Mount makes the directory. It can be repeated.
func Mount(dev, typ, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := mountpoint(dir)
	if err != nil || mounted {
		return err
	}
	if err := requireMountable(dev); err != nil {
		return err
	}
	// gofail: var beforeShareMount struct{}
	data := OnError
	if typ == XFS {
		data = "nouuid"
	}
	if err := unix.Mount(dev, dir, typ, 0, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", dev, dir, err)
	}
	return nil
}

// Unmount undoes Mount, and removes the directory. Bind mounts of it stay. It does
// nothing if there is no such directory.
func Unmount(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	// After a restart of the machine the directory exists, but is no mount point.
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	// gofail: var afterUnshareMount struct{}
	return os.Remove(dir)
}

func mountpoint(dir string) (bool, error) {
	var at, above unix.Stat_t
	if err := unix.Lstat(dir, &at); err != nil {
		return false, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if at.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, &os.PathError{Op: "mount at", Path: dir, Err: unix.ENOTDIR}
	}
	if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
		return false, &os.PathError{Op: "stat", Path: filepath.Dir(dir), Err: err}
	}
	return at.Dev != above.Dev, nil
}
