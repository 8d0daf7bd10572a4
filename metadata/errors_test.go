package metadata

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
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

// TestUnreadableStoreIsNotCalledDamaged: its disk failed a read.
func TestUnreadableStoreIsNotCalledDamaged(t *testing.T) {
	failed := fmt.Errorf("%w: page 7: %w", boltfile.ErrUnreadable, syscall.EIO)
	for _, err := range []error{corrupt(failed), openError(corrupt(failed))} {
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorIs(t, err, syscall.EIO)
		require.NotErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, "try again when the disk is healthy")
	}
	require.ErrorIs(t, corrupt(boltfile.ErrDamaged), ErrCorrupt)
}
