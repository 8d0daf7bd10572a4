package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestEveryErrorHasAClass: containerd cannot tell whether to retry after an error without a class.
func TestEveryErrorHasAClass(t *testing.T) {
	classes := []error{
		errdefs.ErrUnavailable, errdefs.ErrDataLoss, errdefs.ErrFailedPrecondition, errdefs.ErrResourceExhausted,
		errdefs.ErrInvalidArgument, errdefs.ErrInternal,
	}
	for number := 1; number < 134; number++ {
		errno := unix.Errno(number)
		err := Classify(fmt.Errorf("ioctl: %w", errno))
		require.ErrorIs(t, err, errno)
		require.Contains(t, classes, errdefs.Resolve(err), "%v", errno)
	}
	exit := exec.Command("false").Run()
	for class, all := range map[error][]error{
		errdefs.ErrUnavailable: {
			devmapper.ErrNotFound, devmapper.ErrBusy, devmapper.ErrUnavailable, thin.ErrBusy, thin.ErrPoolReadOnly,
			thin.ErrPoolFailed, pool.ErrNotActive, pool.ErrMetadataSnapshot, unix.EINVAL, unix.ENXIO, unix.ENODEV, unix.ENOENT,
			unix.EBUSY, unix.EAGAIN, unix.EINTR, unix.EIO, unix.EROFS,
		},
		errdefs.ErrDataLoss: {
			devmapper.ErrExists, thin.ErrExists, thin.ErrNoDevice, pool.ErrNameTaken, pool.ErrWrongPool, pool.ErrWrongDevice,
			thinmeta.ErrDamaged, thinmeta.ErrNoMetadata, thinmeta.ErrNoDevice, filesystem.ErrNotRecognised, unix.EUCLEAN,
			unix.EBADMSG,
		},
		errdefs.ErrFailedPrecondition: {
			pool.ErrNotOurs, pool.ErrDeviceTaken, pool.ErrGroupTaken, filesystem.ErrUnsupported, filesystem.ErrUnsafe,
			program.ErrNotFound, exit,
			unix.EPERM, unix.EACCES, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS,
		},
		errdefs.ErrResourceExhausted: {
			pool.ErrMetadataTooSmall, unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.EMFILE, unix.ENFILE,
		},
		errdefs.ErrInvalidArgument: {unix.EFBIG},
		errdefs.ErrInternal:        {devmapper.ErrTooLong, errors.New("malformed reply"), io.ErrUnexpectedEOF},
	} {
		for _, cause := range all {
			err := Classify(fmt.Errorf("snapshot: %w", cause))
			require.ErrorIs(t, err, cause)
			require.Equal(t, class, errdefs.Resolve(err), "%v", cause)
			require.Equal(t, err, Classify(err), "it has a class")
		}
	}
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded, errStuck, errTooManyStuck, errFull, metadata.ErrWritesLost} {
		require.Equal(t, cause, Classify(cause), "%v has a class", cause)
	}
	require.NoError(t, Classify(nil))
}
