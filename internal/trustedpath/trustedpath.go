// Package trustedpath checks whether other users decide where a path leads.
package trustedpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// maxLinks is the kernel's limit for symbolic links in a path.
const maxLinks = 40

// Resolve returns an absolute path without symbolic links; its last parts need not exist. It
// returns errdefs.ErrFailedPrecondition if others can change a directory above it or a link in it.
func Resolve(path string) (string, error) {
	at, links := "/", 0
	rest := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for len(rest) > 0 {
		if err := checkAbove(at); errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(append([]string{at}, rest...)...), nil
		} else if err != nil {
			return "", err
		}
		next := filepath.Join(at, rest[0])
		info, err := os.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		rest = rest[1:]
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			at = next
			continue
		}
		if owner := OwnerOf(info); owner != 0 && owner != os.Geteuid() {
			return "", fmt.Errorf("the symbolic link %s belongs to user %d, who could change it: %w", next, owner,
				errdefs.ErrFailedPrecondition)
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "resolve", Path: path, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), rest...)
	}
	return at, nil
}

// checkAbove fails if others can rename or replace files in a directory. In a sticky directory,
// such as /tmp, they can do so only with their own.
func checkAbove(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, mode := OwnerOf(info), info.Mode()
	switch {
	case owner != 0 && owner != os.Geteuid():
		return fmt.Errorf("the directory %s belongs to user %d, who could replace what is in it: "+
			"choose a path below directories that only root can write to: %w", dir, owner, errdefs.ErrFailedPrecondition)
	case mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0:
		return fmt.Errorf("the directory %s has mode %04o, so others could replace what is in it: "+
			"close it with `chmod go-w`, or choose another path: %w", dir, mode.Perm(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// OwnerOf returns the user id of a file's owner, or -1.
func OwnerOf(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}
