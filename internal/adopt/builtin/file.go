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

// maxFile limits the size of a file, in bytes. A snapshot takes up to two pages of 4 KiB, so this
// is enough for more than 100,000.
const maxFile = 1 << 30

// view calls fn in a read transaction. The database is locked until fn returns. view returns fn's
// error unchanged, and adds a class and a remedy to others.
func view(path string, fn func(*bolt.Tx) error) error {
	// Checking the pages takes memory in proportion to the size.
	if info, err := os.Stat(path); err == nil && info.Size() > maxFile {
		return fmt.Errorf("open %s: it has %d bytes, and the limit is %d: "+
			"reduce it with `bbolt compact`: %w", path, info.Size(), maxFile, errdefs.ErrResourceExhausted)
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

// explain adds the class and the remedy to an error of boltfile.
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
		{syscall.ELOOP, "replace the symbolic link by the file", errdefs.ErrFailedPrecondition},
		{fs.ErrPermission, "run it as root", errdefs.ErrPermissionDenied},
	} {
		if errors.Is(err, c.is) {
			return fmt.Errorf("open %s: %w: %s: %w", path, err, c.remedy, c.class)
		}
	}
	return fmt.Errorf("open %s: %w", path, err)
}
