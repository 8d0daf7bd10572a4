package metadata

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// Errors of the store as a whole. Methods of Tx return errdefs classes. ErrClosed and ErrInDoubt
// are Unavailable.
var (
	// ErrLocked is returned by Open when another process has the file open for longer than
	// Options.LockTimeout.
	ErrLocked = errors.New("another thinsnap serves this root")

	// ErrCorrupt is returned by Open when the file is damaged or is another program's; the file is
	// then unchanged. Open does not read the whole file: an Update or View that finds a damaged
	// page returns ErrCorrupt too, as DataLoss.
	ErrCorrupt = errors.New("not an intact thinsnap store")

	// ErrNewer is returned by Open when a newer thinsnap has created or changed the store.
	ErrNewer = errors.New("the store was made by a newer thinsnap")

	// ErrClosed is returned after Close.
	ErrClosed = fmt.Errorf("the metadata store is closed: %w", errdefs.ErrUnavailable)

	// ErrInDoubt is returned by an Update when the disk failed so late that the change may or may
	// not exist when the store is opened again. The caller must neither rely on the change nor undo
	// its part in the pool: the next start settles the volume.
	//
	// Every later Update and View returns it too. So does every Update after a commit that found a
	// damaged page: that change does not exist, but the state of bbolt is unknown.
	ErrInDoubt = fmt.Errorf("unknown whether the last change to the metadata store reached the disk; "+
		"restart thinsnap once the disk is healthy: %w", errdefs.ErrUnavailable)
)

// commitError returns the error of a failed commit, with one of containerd's classes.
func commitError(path string, err error) error {
	err = boltfile.WithErrno(err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("commit to %s: %w: make room on its disk, and try again: %w", path, err,
			errdefs.ErrResourceExhausted)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("commit to %s: %w: try again when the disk is healthy: %w", path, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("commit to %s: %w: %w", path, err, errdefs.ErrInternal)
}

// corrupt wraps the error of a check of pages in ErrCorrupt, unless the disk failed a read.
func corrupt(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, boltfile.ErrUnreadable) {
		return fmt.Errorf("%w (see dmesg): try again when the disk is healthy: %w", err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// pageError returns the error for a panic caused by a page: an assertion of bbolt, or a fault in
// the file's map.
func pageError(p any) error {
	if boltfile.IsFault(p) {
		return fmt.Errorf("cannot read a page: its disk fails, or the file was truncated or is damaged: try again when the "+
			"disk is healthy; if the kernel's log (dmesg) shows no I/O error, stop thinsnap, and run `thinsnap check`: %w",
			errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%w: %v: stop thinsnap, and run `thinsnap check`: %w", ErrCorrupt, p, errdefs.ErrDataLoss)
}

// damaged returns the error of a record that does not decode.
func damaged(format string, args ...any) error {
	return fmt.Errorf("metadata store is damaged: "+format+": %w", append(args, errdefs.ErrDataLoss)...)
}
