package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// errWritesLost is for a snapshot that cannot be committed any more.
var errWritesLost = fmt.Errorf("some writes to it were lost, because its pool was full, or it or the file system had "+
	"failed: remove it, then pull or build it again: %w", errdefs.ErrDataLoss)

// errDamaged is for a snapshot with a file system that is not whole.
var errDamaged = fmt.Errorf("its file system is not whole (see dmesg): remove it, then pull or build it again; "+
	"if that fails as well, remove the image below it too: %w", errdefs.ErrDataLoss)

// explain classifies an error, and puts the pool's own error before it: the state of the pool says
// more about an I/O error than its number does.
func (s *Snapshotter) explain(err error) error {
	if err == nil || hasClass(err) {
		return err
	}
	status, statusErr := s.pool.Status(context.Background())
	if statusErr != nil {
		return Classify(err)
	}
	if cause := poolError(status); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return Classify(err)
}

// Classify gives an error of the kernel or of a disk one of containerd's error classes and, where
// there is one, the remedy. It returns an error that has a class as it is.
func Classify(err error) error {
	switch {
	case err == nil, hasClass(err):
		return err
	case errors.Is(err, thin.ErrPoolReadOnly), errors.Is(err, thin.ErrPoolFailed), errors.Is(err, devmapper.ErrBusy),
		errors.Is(err, pool.ErrNotActive):
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	case errors.Is(err, thin.ErrExists), errors.Is(err, thin.ErrNoDevice), errors.Is(err, pool.ErrNameTaken),
		errors.Is(err, devmapper.ErrExists), errors.Is(err, pool.ErrWrongPool), errors.Is(err, pool.ErrWrongDevice):
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	case errors.Is(err, pool.ErrNotOurs):
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, pool.ErrMetadataTooSmall):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case isOneOf(err, unix.ENOSPC, unix.EDQUOT):
		return fmt.Errorf("%w: the disk is full: make room on it, and try again: %w", err, errdefs.ErrResourceExhausted)
	case isIOError(err), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: see dmesg, fix the disk below it, and try again: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

// hasClass tells whether an error has one of containerd's classes.
func hasClass(err error) bool { return !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) }

// isIOError tells whether the kernel could not read or write: these are the error numbers that it
// derives from the errors of a block device (block/blk-core.c).
func isIOError(err error) bool {
	return isOneOf(err, unix.EIO, unix.ENOSPC, unix.ENODATA, unix.ETIMEDOUT, unix.ENOLINK, unix.EREMOTEIO, unix.EILSEQ)
}

func isOneOf(err error, errnos ...unix.Errno) bool {
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
