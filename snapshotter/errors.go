package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrDamaged reports an active snapshot whose file system has errors or lacks writes.
var ErrDamaged = fmt.Errorf("its file system is damaged or incomplete (see dmesg): remove the snapshot, then pull or "+
	"build it again; if that fails too, remove its parent as well: %w", errdefs.ErrDataLoss)

// explain classifies an error. It puts the pool's own error first, because the state of the pool says more
// about an I/O error than its errno.
func (s *Snapshotter) explain(err error) error {
	if err == nil || hasClass(err) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), fullWait)
	defer cancel()
	status, statusErr := s.askStatus(ctx)
	if statusErr != nil {
		return Classify(err)
	}
	if cause := poolError(status); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return Classify(err)
}

// class is an error class of containerd, with its causes and a hint.
type class struct {
	class  error
	hint   string // may be empty
	causes []error
}

// classes returns the known causes by class. An error may have several causes: the first match counts.
func classes() []class {
	return []class{
		{errdefs.ErrUnavailable, "", []error{
			thin.ErrPoolReadOnly, thin.ErrPoolFailed, thin.ErrBusy, devmapper.ErrBusy, devmapper.ErrUnavailable,
			pool.ErrNotActive, pool.ErrMetadataSnapshot,
		}},
		{errdefs.ErrDataLoss, "", []error{
			thin.ErrExists, thin.ErrNoDevice, pool.ErrNameTaken, devmapper.ErrExists, pool.ErrWrongPool, pool.ErrWrongDevice,
			thinmeta.ErrDamaged, thinmeta.ErrNoMetadata, thinmeta.ErrNoDevice, filesystem.ErrNotRecognised,
		}},
		{errdefs.ErrFailedPrecondition, "", []error{
			pool.ErrNotOurs, pool.ErrDeviceTaken, pool.ErrGroupTaken, filesystem.ErrUnsupported, filesystem.ErrUnsafe,
			program.ErrNotFound,
		}},
		{errdefs.ErrResourceExhausted, "", []error{pool.ErrMetadataTooSmall}},
		{errdefs.ErrUnavailable, "it is gone from the kernel (see dmesg)", []error{
			devmapper.ErrNotFound, unix.ENOENT, unix.ENODEV, unix.ENXIO,
		}},
		{errdefs.ErrResourceExhausted, "the disk is full: make room on it, and try again", []error{unix.ENOSPC, unix.EDQUOT}},
		{errdefs.ErrUnavailable, "see dmesg, fix the disk below it, and try again", append(ioErrors(), unix.EROFS)},
		{errdefs.ErrDataLoss, "its file system is damaged (see dmesg)", []error{unix.EUCLEAN, unix.EBADMSG}},
		{errdefs.ErrFailedPrecondition, "thinsnap lacks privileges: it needs those of its systemd unit", []error{
			unix.EPERM, unix.EACCES,
		}},
		{errdefs.ErrFailedPrecondition, "the kernel cannot do that", []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS}},
		{errdefs.ErrInvalidArgument, "its file system cannot have that size", []error{unix.EFBIG}},
		{errdefs.ErrResourceExhausted, "the machine is short of memory, or thinsnap of file descriptors", []error{
			unix.ENOMEM, unix.EMFILE, unix.ENFILE,
		}},
		{errdefs.ErrUnavailable, "the kernel refused it: see dmesg, and try again", []error{
			unix.EINVAL, unix.EBUSY, unix.EAGAIN, unix.EINTR,
		}},
	}
}

// Classify adds one of containerd's error classes, and a hint if one is known, to an error of the kernel,
// a program or a disk. It returns an error that already has a class unchanged.
func Classify(err error) error {
	if err == nil || hasClass(err) {
		return err
	}
	for _, c := range classes() {
		if !isOneOf(err, c.causes...) {
			continue
		}
		if c.hint == "" {
			return fmt.Errorf("%w: %w", err, c.class)
		}
		return fmt.Errorf("%w: %s: %w", err, c.hint, c.class)
	}
	if program := (interface{ ExitCode() int })(nil); errors.As(err, &program) {
		return fmt.Errorf("%w: the program failed (see dmesg, and filesystem.mkfs_options): %w", err,
			errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
}

func hasClass(err error) bool { return !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) }

// isIOError reports whether the kernel could not read or write. It derives these error numbers from the
// errors of a block device (block/blk-core.c).
func isIOError(err error) bool { return isOneOf(err, ioErrors()...) }

func ioErrors() []error {
	return []error{unix.EIO, unix.ENOSPC, unix.ENODATA, unix.ETIMEDOUT, unix.ENOLINK, unix.EREMOTEIO, unix.EILSEQ}
}

func isOneOf(err error, causes ...error) bool {
	return slices.ContainsFunc(causes, func(cause error) bool { return errors.Is(err, cause) })
}
