package daemon

import (
	"testing"

	"github.com/containerd/containerd/v2/pkg/kernelversion"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestKernelThatIsTooOld(t *testing.T) {
	require.NoError(t, requireKernel(oldestKernel()))
	var system unix.Utsname
	require.NoError(t, unix.Uname(&system))
	err := requireKernel(kernelversion.KernelVersion{Kernel: 1000, Major: 7})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "the kernel is Linux "+unix.ByteSliceToString(system.Release[:])+", but thinsnap needs 1000.7")
}
