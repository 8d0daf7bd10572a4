package devmapper

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound is matched when no device has the name or uuid (ENXIO).
	ErrNotFound = errors.New("no such device-mapper device")
	// ErrExists is matched when the name or uuid of a new device is in use (EBUSY).
	ErrExists = errors.New("device-mapper device exists")
	// ErrBusy is matched when a device is open, mounted or used by another
	// device (EBUSY).
	ErrBusy = errors.New("device-mapper device is in use")
	// ErrTooLong is matched when a name exceeds 127 bytes or a uuid 128 (ENAMETOOLONG). No request
	// is sent then.
	ErrTooLong = errors.New("device-mapper name or uuid is too long")
	// ErrUnavailable is matched when the host has no device-mapper, or access is denied. The
	// message has the remedy.
	ErrUnavailable = errors.New("device-mapper is not available")
)

// Error is a failed operation. It matches its Errno and, where one fits, one
// of the sentinels of this package with errors.Is.
type Error struct {
	Op     string     // the command: "create", "load", ...
	Device string     // name or uuid of the device; "" if none
	Errno  unix.Errno // from the kernel or this package
	kind   error      // the sentinel, or nil
}

func (e *Error) Error() string {
	s := prefix(e.Op, e.Device)
	if e.kind != nil {
		return s + ": " + e.kind.Error() + " (" + e.Errno.Error() + ")"
	}
	return s + ": " + e.Errno.Error()
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Is reports whether target is the sentinel for this error.
func (e *Error) Is(target error) bool { return e.kind != nil && e.kind == target }

// newError chooses the sentinel for an errno by the operation.
func newError(o op, device string, errno unix.Errno) *Error {
	e := &Error{Op: o.String(), Device: device, Errno: errno}
	switch {
	case errno == unix.ENXIO:
		e.kind = ErrNotFound
	case errno == unix.EBUSY && o == opCreate:
		e.kind = ErrExists
	case errno == unix.EBUSY:
		e.kind = ErrBusy
	case errno == unix.ENAMETOOLONG:
		e.kind = ErrTooLong
	}
	return e
}

// failure adds the operation to an error that is not the kernel's answer. It returns nil for nil.
func failure(o op, device string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", prefix(o.String(), device), err)
}

func prefix(op, device string) string {
	if device == "" {
		return "device-mapper: " + op
	}
	return "device-mapper: " + op + " " + device
}
