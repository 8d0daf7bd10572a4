package metadata

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// bbolt makes the errno into text when it grows the file.
func TestCommitErrors(t *testing.T) {
	for errno, class := range map[syscall.Errno]error{
		syscall.EIO: errdefs.ErrUnavailable, syscall.EROFS: errdefs.ErrUnavailable, syscall.ENOSPC: errdefs.ErrResourceExhausted,
		syscall.EDQUOT: errdefs.ErrResourceExhausted, syscall.EBADF: errdefs.ErrInternal,
	} {
		failed := &os.PathError{Op: "truncate", Path: "x", Err: errno}
		for _, err := range []error{failed, errors.New("file resize error: " + failed.Error())} {
			require.ErrorIs(t, commitError("metadata.db", err), class, err)
		}
	}
}
