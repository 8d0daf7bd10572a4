package filesystem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mounted tells whether a file system is mounted from the block device at dev, in
// whatever mount name space: /sys/fs/ext4 and /sys/fs/xfs have a directory then,
// with the kernel's name of the device.
func Mounted(dev, typ string) bool {
	node, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join("/sys/fs", typ, filepath.Base(node)))
	return err == nil
}

// Share mounts the file system on dev, which is mounted elsewhere already, at dir
// as well, so that it can be bound from there to anywhere, read-only too: mounted
// from the device it could be read-only only if it was everywhere. It can be
// repeated. The directory is made, and gone when Unshare returns.
func Share(dev, typ, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	shared, err := mountpoint(dir)
	if err != nil || shared {
		return err
	}
	// gofail: var beforeShareMount struct{}
	data := ""
	if typ == XFS {
		data = "nouuid"
	}
	if err := unix.Mount(dev, dir, typ, 0, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", dev, dir, err)
	}
	return nil
}

// Unshare undoes Share. Where it was bound to, it stays mounted. It does nothing
// if there is no such directory.
func Unshare(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	// After a restart of the machine the directory is there, but nothing on it.
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
