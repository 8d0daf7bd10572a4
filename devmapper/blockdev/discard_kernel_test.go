package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

const mib = 1 << 20

// TestKernelDiscardReturnsSpace: a discard of a volume frees space of the file under the pool. The
// deletion of the volume alone does not.
func TestKernelDiscardReturnsSpace(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	p := dmpool.New(t, 64*mib, 4*mib)
	allocated := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(p.DataFile, &st))
		return st.Blocks * 512
	}
	require.NoError(t, p.CreateThin(1))
	_, err := p.Activate("dmdiscard", 1, 32*mib, false)
	require.NoError(t, err)
	path := devmapper.NodePath("dmdiscard")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(bytes.Repeat([]byte{'x'}, 16*mib))
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
	require.GreaterOrEqual(t, allocated(), int64(16*mib))

	f, err = os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	require.NoError(t, err)
	require.NoError(t, blockdev.Discard(t.Context(), f, 0, 32*mib, 64<<10, nil))

	require.Less(t, allocated(), int64(mib))
	s, err := p.Status(false)
	require.NoError(t, err)
	require.Zero(t, s.DataUsed)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, blockdev.Discard(cancelled, f, 0, 32*mib, 64<<10, nil), context.Canceled)
	require.ErrorIs(t, blockdev.Discard(t.Context(), f, 0, 33*mib, 64<<10, nil), unix.EINVAL, "beyond the end")
	require.NoError(t, f.Close())
}
