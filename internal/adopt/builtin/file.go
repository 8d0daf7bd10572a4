package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// maxFile is the size of the largest file that is read, in bytes. A snapshot takes up to two pages
// of 4 KiB, so that this is more than 100,000 of them.
const maxFile = 1 << 30

// view calls fn in a transaction on a database, which is locked until fn returns. The error of fn
// is returned as it is, others with a class and a remedy.
func view(path string, fn func(*bolt.Tx) error) error {
	// Checking the pages takes memory in proportion to the file.
	if info, err := os.Stat(path); err == nil && info.Size() > maxFile {
		return fmt.Errorf("open %s: it has %d bytes, and no more than %d are read: "+
			"make a smaller file of it with `bbolt compact`: %w", path, info.Size(), maxFile, errdefs.ErrResourceExhausted)
	}
	var own error
	err := boltfile.View(path, func(tx *bolt.Tx) error {
		own = fn(tx)
		return own
	})
	if own != nil {
		return own
	}
	return explain(path, err)
}

// explain gives an error of boltfile its class and its remedy.
func explain(path string, err error) error {
	if err == nil {
		return nil
	}
	for _, c := range []struct {
		is     error
		remedy string
		class  error
	}{
		{boltfile.ErrLocked, "stop containerd, and try again", errdefs.ErrFailedPrecondition},
		{boltfile.ErrDamaged, remedyDamaged, errdefs.ErrDataLoss},
		{boltfile.ErrUnreadable, "try again when the disk is healthy", errdefs.ErrUnavailable},
		{syscall.EIO, "try again when the disk is healthy", errdefs.ErrUnavailable},
		{fs.ErrNotExist, "see root_path and pool_name in containerd's configuration", errdefs.ErrNotFound},
		{syscall.ELOOP, "put the file in the place of the symbolic link", errdefs.ErrFailedPrecondition},
		{fs.ErrPermission, "run it as root", errdefs.ErrPermissionDenied},
	} {
		if errors.Is(err, c.is) {
			return fmt.Errorf("open %s: %w: %s: %w", path, err, c.remedy, c.class)
		}
	}
	return fmt.Errorf("open %s: %w", path, err)
}
