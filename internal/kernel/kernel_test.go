package kernel

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestKernelThatIsTooOld(t *testing.T) {
	require.NoError(t, Require())
	for _, release := range []string{"5.12.0", "5.14.0-503.el9.x86_64", "6.1.0-50-amd64", "7.2.0-rc1+", "10.0"} {
		require.NoError(t, Check(release))
	}
	for _, release := range []string{"5.11.22", "5.10.0-35-amd64", "4.18.0-553.el8"} {
		err := Check(release)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "the kernel is Linux "+release+", but thinsnap needs 5.12 or newer")
	}
	require.ErrorIs(t, Check("linux"), errdefs.ErrFailedPrecondition)
}
