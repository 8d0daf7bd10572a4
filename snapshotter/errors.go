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

// explained gives an error of the kernel's side or of a disk the class that
// containerd understands, unless it has one, and says what to do. What is wrong
// with the pool explains an I/O error better than its number does.
func (s *Snapshotter) explained(err error) error {
	if err == nil || hasClass(err) {
		return err
	}
	status, statusErr := s.pool.Status(context.Background())
	if statusErr != nil {
		return Classify(err)
	}
	if cause := unwell(status); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return Classify(err)
}

// errSpoilt is for a snapshot that cannot be committed any more.
var errSpoilt = fmt.Errorf("some of what was written to it was lost, because its pool was full or had failed: "+
	"remove it, and do again what made it: %w", errdefs.ErrDataLoss)

// Classify gives an error of the kernel's side or of a disk the class that
// containerd understands, unless it has one.
func Classify(err error) error {
	switch {
	case err == nil, hasClass(err):
		return err
	case errors.Is(err, thin.ErrPoolReadOnly), errors.Is(err, thin.ErrPoolFailed), errors.Is(err, devmapper.ErrBusy),
		errors.Is(err, pool.ErrNotActive):
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	case errors.Is(err, thin.ErrExists), errors.Is(err, thin.ErrNoDevice), errors.Is(err, pool.ErrNameTaken),
		errors.Is(err, devmapper.ErrExists), errors.Is(err, pool.ErrWrongPool):
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	case errors.Is(err, pool.ErrNotOurs):
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, pool.ErrMetadataTooSmall):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case isOneOf(err, unix.ENOSPC, unix.EDQUOT):
		return fmt.Errorf("%w: the disk is full: make room on it, and try again: %w", err, errdefs.ErrResourceExhausted)
	case isIOError(err), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %s: %w", err, remedyDisk, errdefs.ErrUnavailable)
	}
	return err
}

// hasClass tells whether containerd can make something of an error.
func hasClass(err error) bool { return !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) }

// isIOError tells whether the kernel could not read or write something: these are
// the numbers that it makes of a block device's errors (block/blk-core.c).
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
