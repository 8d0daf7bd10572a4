package adopt

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Enter lets a process open the store of a root. It fails like Unfinished, or with
// errdefs.ErrUnavailable while an adoption runs. No adoption can begin until the process calls
// leave, which it does when it has locked the store.
func Enter(root string) (leave func(), err error) {
	dir, err := lockRoot(root, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	if err := Unfinished(root); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return func() { _ = dir.Close() }, nil // nothing was written
}

// lockRoot locks the root directory until the returned file is closed.
func lockRoot(root string, how int) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("lock the root directory: %w", err)
	}
	err = retryBriefly(func() error { return unix.Flock(int(dir.Fd()), how|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		user := "`thinsnap adopt` runs on it"
		if how == unix.LOCK_EX {
			user = "thinsnap, or another `thinsnap adopt`, is starting on it"
		}
		err = fmt.Errorf("%s: wait for its end: %w", user, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the root directory %s: %w", root, err), dir.Close())
	}
	return dir, nil
}
