package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// prepareRoot makes the root directory, or sees to it that an existing one is for root alone, with nothing in it that leads
// elsewhere: what is in there decides which file becomes a block device, and what becomes of it.
//
// A root to which others could write is errdefs.ErrFailedPrecondition, and so is a symbolic link in it. One that others could
// read is closed to them. The root itself may be a link: whoever made that may write to the directory around it.
func prepareRoot(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("make the root directory: %w", err)
	}
	info, err := os.Stat(root)
	if err != nil {
		return fmt.Errorf("look at the root directory: %w", err)
	}
	if owner := ownerOf(info); owner != os.Geteuid() {
		return fmt.Errorf("the root directory %s belongs to user %d, who could change what is in it: "+
			"look at what is there, and give it to root with `chown root`: %w", root, owner, errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the root directory %s has mode %04o, and others may have changed what is in it: "+
			"look at what is there, and close it with `chmod 0700`: %w", root, info.Mode().Perm(), errdefs.ErrFailedPrecondition)
	}
	for _, name := range []string{".", "metadata.db", "mounts", "pool", "pool/data", "pool/metadata"} {
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

// closeToOthers takes the rights of others from what is in the root, if it is there.
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
		return fmt.Errorf("%s is a symbolic link, and none is followed within the root directory: "+
			"mount what it points to in its place (`mount --bind`), or keep the whole root elsewhere (the key root): %w",
			path, errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	mode := info.Mode().Perm() &^ 0o077
	log.L.WithField("path", path).Warnf("others had rights on this: its mode was %04o, and is now %04o", info.Mode().Perm(), mode)
	return os.Chmod(path, mode)
}
