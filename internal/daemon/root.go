package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/provision"
)

// prepareRoot creates the root directory, or checks that only the daemon's user can access it and
// that it has no symbolic links: the root's contents decide which files become block devices.
//
// A root that others can write to, or a symbolic link in it, is errdefs.ErrFailedPrecondition. Read
// permissions of others are removed. The root itself may be a link: its creator could write to the
// directory above it anyway.
func prepareRoot(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("create the root directory: %w", err)
	}
	info, err := os.Stat(root)
	if err != nil {
		return fmt.Errorf("check the root directory: %w", err)
	}
	if owner := ownerOf(info); owner != os.Geteuid() {
		return fmt.Errorf("the root directory %s belongs to user %d, who could change its contents: "+
			"check its contents, and give it to root with `chown root`: %w", root, owner, errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the root directory %s has mode %04o, so others may have changed its contents: "+
			"check its contents, and close it with `chmod 0700`: %w", root, info.Mode().Perm(), errdefs.ErrFailedPrecondition)
	}
	for _, name := range slices.Concat([]string{".", "metadata.db", "mounts"}, provision.RootFiles()) {
		if err := closeToOthers(root, name); err != nil {
			return err
		}
	}
	return nil
}

// ownerOf returns the user id of a file's owner, or -1.
func ownerOf(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}

// closeToOthers removes the permissions of others from a file in the root, if it exists.
func closeToOthers(root, name string) error {
	path := filepath.Join(root, name)
	look := os.Lstat
	if name == "." {
		look = os.Stat
	}
	info, err := look(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return fmt.Errorf("%s is a symbolic link, which is not allowed within the root directory: "+
			"mount its target in its place (`mount --bind`), or move the whole root (key root): %w",
			path, errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	mode := info.Mode().Perm() &^ 0o077
	log.L.WithField("path", path).Warnf("removed the permissions of others: mode %04o is now %04o", info.Mode().Perm(),
		mode)
	return os.Chmod(path, mode)
}
