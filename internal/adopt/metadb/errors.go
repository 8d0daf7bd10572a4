package metadb

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

const remedyDamaged = "restore a backup, or remove it and pull all images again"

// errDamaged is the reason for a database with intact pages but inconsistent contents.
var errDamaged = fmt.Errorf("the database is damaged: %s: %w", remedyDamaged, errdefs.ErrDataLoss)

// explain adds the class and the remedy to an error of boltfile or of the file system.
func explain(do, path string, err error) error {
	var (
		class  error
		remedy string
	)
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	switch {
	case err == nil:
		return nil
	case is(boltfile.ErrLocked):
		remedy, class = "stop containerd", errdefs.ErrFailedPrecondition
	case is(boltfile.ErrDamaged):
		remedy, class = remedyDamaged, errdefs.ErrDataLoss
	case is(boltfile.ErrUnreadable, syscall.EIO):
		remedy, class = "try again when the disk is healthy", errdefs.ErrUnavailable
	case is(fs.ErrNotExist, syscall.ENOTDIR):
		remedy, class = "use the root directory of containerd", errdefs.ErrNotFound
	case is(syscall.ELOOP):
		remedy, class = "use the file, not a symbolic link", errdefs.ErrFailedPrecondition
	case is(fs.ErrPermission):
		remedy, class = "run it as root", errdefs.ErrPermissionDenied
	case is(syscall.EROFS):
		remedy, class = "mount its file system for writing", errdefs.ErrFailedPrecondition
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		remedy, class = "make room on its disk, and try again", errdefs.ErrResourceExhausted
	default:
		return fmt.Errorf("%s %s: %w", do, path, err)
	}
	return fmt.Errorf("%s %s: %w: %s: %w", do, path, err, remedy, class)
}
