package filesystem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// Mounted reports whether the file system on dev is mounted in any mount namespace: /sys/fs/ext4
// or /sys/fs/xfs then has a directory with the kernel's name of the device.
func Mounted(dev, typ string) bool {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return false
	}
	// Without udev, a node that dmsetup created does not have the kernel's name.
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join("/sys/fs", typ, filepath.Base(device)))
	return err == nil
}

// The directories below Mount's dir.
const (
	stageDir = "stage" // mounts are assembled here, invisible to other mount namespaces
	shareDir = "share" // and attached here in one step
	rootDir  = "root"  // in the tmpfs: the mount point of the file system
)

// MountPath returns the path at which Mount mounts below dir.
func MountPath(dir string) string { return filepath.Join(dir, shareDir, rootDir) }

// Mount adds a mount of the file system on dev, which is already mounted elsewhere. It creates dir,
// mounts below it, and returns the path of the mount. Bind mounts of that path can be read-only; a
// mount of the device can be read-only only if all its mounts are. The options are those of
// fstab(5). A repeated call returns the same path.
//
// The returned directory exists only in a tmpfs that is mounted together with the file system. A
// process in a mount namespace without the mount gets ENOENT, and does not bind an empty
// directory.
func Mount(dev, typ, dir string, options []string) (path string, err error) {
	stage, share := filepath.Join(dir, stageDir), filepath.Join(dir, shareDir)
	path = MountPath(dir)
	switch mounted, err := isMounted(dev, dir); {
	case err != nil:
		return "", err
	case mounted:
		return path, unmountAll(stage)
	}
	if err := Unmount(dir); err != nil { // the remains of a crash, or of an older version
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Unmount(dir))
		}
	}()
	for _, d := range []string{stage, share} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return "", err
		}
	}
	if err := requireMountable(dev); err != nil {
		return "", err
	}
	// gofail: var beforeShareMount struct{}
	security, err := securityOptions(dev, options)
	if err != nil {
		return "", fmt.Errorf("read the security options of %s: %w", dev, err)
	}
	m := mount.Mount{Type: typ, Source: dev, Options: append(requiredOptions(typ), withSecurity(options, security)...)}
	if err := mountStage(stage, m); err != nil {
		return "", err
	}
	if err := attach(stage, share); err != nil {
		return "", fmt.Errorf("attach the mount of %s at %s: %w", dev, share, err)
	}
	// gofail: var afterShareMount struct{}
	return path, unmountAll(stage)
}

// requiredOptions returns the options that each mount of a file system needs.
func requiredOptions(typ string) []string {
	if typ == XFS {
		return []string{"nouuid"} // all snapshots of a base volume have the same UUID
	}
	return []string{OnError}
}

// mountStage mounts a tmpfs at stage, and m in it.
func mountStage(stage string, m mount.Mount) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("thinsnap", stage, "tmpfs", flags, "mode=0700,size=4k,nr_inodes=4"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", stage, err)
	}
	// Otherwise the unmount at stage would propagate to share.
	if err := unix.Mount("", stage, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mount at %s private: %w", stage, err)
	}
	// gofail: var afterStageMount struct{}
	root := filepath.Join(stage, rootDir)
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	if err := m.Mount(root); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.Source, root, err)
	}
	// gofail: var afterStageFilesystem struct{}
	return nil
}

// attach clones the mounts at from, and attaches them at to.
func attach(from, to string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", from, err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// isMounted reports whether Mount has mounted dev below dir.
func isMounted(dev, dir string) (bool, error) {
	share := filepath.Join(dir, shareDir)
	isMount, err := isMountPoint(dir)
	if err != nil || isMount { // an older version mounted at dir itself: the names in it are the file system's
		return false, err
	}
	if isMount, err = isMountPoint(share); err != nil || !isMount {
		return false, err
	}
	var root, node unix.Stat_t
	if err := unix.Stat(filepath.Join(share, rootDir), &root); err != nil {
		return false, &os.PathError{Op: "stat", Path: filepath.Join(share, rootDir), Err: err}
	}
	if err := unix.Stat(dev, &node); err != nil {
		return false, &os.PathError{Op: "stat", Path: dev, Err: err}
	}
	return root.Dev == node.Rdev, nil
}

// isMountPoint reports whether another file system is mounted at dir, which need not exist.
func isMountPoint(dir string) (bool, error) {
	var at, above unix.Stat_t
	switch err := unix.Lstat(dir, &at); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "lstat", Path: dir, Err: err}
	case at.Mode&unix.S_IFMT != unix.S_IFDIR:
		return false, &os.PathError{Op: "mount at", Path: dir, Err: unix.ENOTDIR}
	}
	if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
		return false, &os.PathError{Op: "stat", Path: filepath.Dir(dir), Err: err}
	}
	return at.Dev != above.Dev, nil
}

// Unmount undoes Mount, even one that a crash interrupted, and removes dir. Bind mounts of it
// remain. It does nothing if dir does not exist.
func Unmount(dir string) error {
	if st, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err == nil && !st.IsDir() {
		return os.Remove(dir)
	}
	stage, share := filepath.Join(dir, stageDir), filepath.Join(dir, shareDir)
	// dir is first: an older version mounted the file system there, which has names of its own.
	for _, at := range []string{dir, share, stage} {
		if err := unmountAll(at); err != nil {
			return err
		}
	}
	// gofail: var afterUnshareMount struct{}
	for _, d := range []string{share, stage} {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Remove(dir)
}

// UnmountAll undoes each Mount in a directory. It does nothing if the directory does not exist.
func UnmountAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		err = errors.Join(err, Unmount(filepath.Join(dir, entry.Name())))
	}
	return err
}

func unmountAll(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // no mount point
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
