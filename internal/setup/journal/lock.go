package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxName limits how much of a lock file is read.
const maxName = 256

// Lock keeps other processes from changing files until release is called, or this process ends. The
// lock file names its holder, and is never removed. If another process holds it, Lock fails with
// errdefs.ErrFailedPrecondition and the holder's name. Other errors are those of the operating
// system.
func Lock(path, name string) (release func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the set-up: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, readErr := io.ReadAll(io.LimitReader(f, maxName))
		return nil, errors.Join(fmt.Errorf("%s holds %s: run the command again when it has ended: %w",
			strings.TrimSpace(string(holder)), path, errdefs.ErrFailedPrecondition), readErr)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintf(f, "process %d (%s)\n", os.Getpid(), name)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}
