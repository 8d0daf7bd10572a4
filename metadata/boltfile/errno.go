package boltfile

import (
	"errors"
	"strings"
	"syscall"
)

// WithErrno restores the errno of an error that bbolt made into text when it grew the file (db.go,
// grow).
func WithErrno(err error) error {
	if err == nil {
		return nil
	}
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EROFS} {
		if !errors.Is(err, errno) && strings.HasSuffix(err.Error(), ": "+errno.Error()) {
			return errnoError{err, errno}
		}
	}
	return err
}

type errnoError struct {
	error
	errno syscall.Errno
}

func (e errnoError) Unwrap() []error { return []error{e.error, e.errno} }
