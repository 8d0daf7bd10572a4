package filesystem

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// discardWait limits how long Trim waits for discards on a device that stays busy.
	discardWait = time.Second
	discardPoll = time.Millisecond
)

// InitRoot makes the root directory of a new file system empty, with mode 0755, as containerd
// expects of a snapshot without a parent.
func InitRoot(dev, typ string) error {
	return withMount(dev, typ, func(root *os.File) error {
		err := unix.Unlinkat(int(root.Fd()), "lost+found", unix.AT_REMOVEDIR)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove lost+found: %w", err)
		}
		if err := root.Chmod(0o755); err != nil {
			return err
		}
		return unix.Syncfs(int(root.Fd()))
	})
}

// Recover replays the journal of a file system that was not unmounted cleanly, by mounting it once.
func Recover(dev, typ string) error {
	return withMount(dev, typ, func(*os.File) error { return nil })
}

// Verify mounts the file system on dev once, read-only, as a View is. dev must be read-only: on a
// writable device, the kernel would replay the journal. It returns ErrNeedsRecovery if the journal
// or log must be replayed first.
func Verify(dev, typ string) error {
	err := withDetached(dev, typ, true, nil, func(*os.File) error { return nil })
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", ErrNeedsRecovery, err)
	}
	return err
}

// ReadOnly calls f with the root directory of the file system on dev, which must be read-only. A
// detached, read-only mount exists until f returns. The options are as for Trim.
func ReadOnly(dev, typ string, f func(root *os.File) error, options ...string) error {
	security, err := securityOptions(dev, options)
	if err != nil {
		return fmt.Errorf("read the security options of %s: %w", dev, err)
	}
	return withDetached(dev, typ, true, security, f)
}

// Sync writes back the file system on dev, which is mounted elsewhere (syncfs). It also returns
// earlier writeback errors that no process has seen. It does nothing if the file system is mounted
// read-only or is frozen. The options are as for Trim.
func Sync(dev, typ string, options ...string) error {
	err := withSecondMount(dev, typ, options, func(root *os.File) error { return unix.Syncfs(int(root.Fd())) })
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// Grow grows the file system on dev to the given size in bytes, which the device must have. It does
// not shrink a larger file system.
func Grow(dev, typ string, bytes uint64) error {
	sb, err := Identify(dev)
	if err != nil {
		return err
	}
	blocks := bytes / sb.BlockBytes
	if blocks*sb.BlockBytes <= sb.Bytes {
		return nil
	}
	return withMount(dev, typ, func(root *os.File) error {
		if err := resize(root, sb, blocks); err != nil {
			return fmt.Errorf("grow from %d to %d bytes: %w", sb.Bytes, bytes, err)
		}
		// gofail: var afterResize struct{}
		return unix.Syncfs(int(root.Fd()))
	})
}

// Trim makes the file system on dev, which is mounted elsewhere, discard its unused blocks among
// length bytes at start (FITRIM). It returns their bytes, whether the device had them mapped or
// not. Blocks of deleted files are unused once the deletion is in the journal, some seconds later.
// The discards have ended when Trim returns, unless the device stays busy.
//
// It returns unix.EBUSY if the file system is mounted read-only, or frozen; unix.EINVAL if it ends
// before start; unix.EROFS if it is an ext4 that was mounted without its journal; unix.EOPNOTSUPP
// if the device does not support discards.
//
// The options are the mount options of the other mounts. Only their SELinux options are used, and
// only if this mount namespace has none of those mounts to read them from.
func Trim(dev, typ string, start, length uint64, options ...string) (trimmed uint64, err error) {
	err = withSecondMount(dev, typ, options, func(root *os.File) error {
		if trimmed, err = trim(root, start, length); err != nil || typ != XFS {
			return err
		}
		awaitDiscards(root)
		return nil
	})
	return trimmed, err
}

// awaitDiscards waits until the device of a file system has no writes in flight, at most for
// discardWait. The XFS of newer kernels starts its discards and does not wait for them
// (xfs_discard_extents in fs/xfs/xfs_discard.c).
func awaitDiscards(root *os.File) {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return
	}
	// Documentation/ABI/stable/sysfs-block: the reads and the writes in flight.
	inflight := fmt.Sprintf("/sys/dev/block/%d:%d/inflight", unix.Major(st.Dev), unix.Minor(st.Dev))
	for deadline := time.Now().Add(discardWait); ; time.Sleep(discardPoll) {
		var reads, writes int
		content, err := os.ReadFile(inflight)
		if err == nil {
			_, err = fmt.Sscan(string(content), &reads, &writes)
		}
		if err != nil || writes == 0 || time.Now().After(deadline) {
			return // the trim itself has succeeded
		}
	}
}

// requireMountable returns ErrUnsafe for a file system that the host does not mount.
func requireMountable(dev string) error {
	sb, err := Identify(dev)
	if errors.Is(err, ErrNotRecognised) {
		return nil // the kernel does not recognise it either
	}
	if err == nil {
		err = sb.Mountable()
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	return nil
}

// withMount calls f with the root directory of the file system on dev, mounted read-write on a
// detached mount (fsmount(2), Linux 5.2).
func withMount(dev, typ string, f func(root *os.File) error) error {
	return withDetached(dev, typ, false, nil, f)
}

// withSecondMount is withMount for a file system that is mounted elsewhere, with the given options.
func withSecondMount(dev, typ string, options []string, f func(root *os.File) error) error {
	security, err := securityOptions(dev, options)
	if err != nil {
		return fmt.Errorf("read the security options of %s: %w", dev, err)
	}
	return withDetached(dev, typ, false, security, f)
}

// withDetached calls f with the root directory of a detached mount, and then unmounts it.
func withDetached(dev, typ string, readOnly bool, security []string, f func(root *os.File) error) error {
	if err := requireMountable(dev); err != nil {
		return err
	}
	wrap := func(what string, err error) error {
		return fmt.Errorf("%s %s on %s: %w", what, typ, dev, err)
	}
	fs, err := unix.Fsopen(typ, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return wrap("open", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", dev); err != nil {
		return wrap("configure", err)
	}
	if typ == XFS {
		// All snapshots of a base volume have the same UUID.
		if err := unix.FsconfigSetFlag(fs, "nouuid"); err != nil {
			return wrap("configure", err)
		}
	} else if err := unix.FsconfigSetString(fs, "errors", strings.TrimPrefix(OnError, "errors=")); err != nil {
		return wrap("configure", err)
	}
	if readOnly {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return wrap("configure", err)
		}
	}
	if err := setSecurity(fs, security); err != nil {
		return wrap("configure", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return wrap("mount", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return wrap("mount", err)
	}
	defer unix.Close(mnt)
	// The result of fsmount is like O_PATH: it accepts no ioctls.
	fd, err := unix.Openat(mnt, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open the root of", err)
	}
	root := os.NewFile(uintptr(fd), dev)
	defer root.Close()
	if err := f(root); err != nil {
		return wrap("work on", err)
	}
	return nil
}
