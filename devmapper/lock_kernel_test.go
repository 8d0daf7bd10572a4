package devmapper_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func TestKernelLock(t *testing.T) {
	dmtest.RequireKernel(t)
	first, err := devmapper.Open()
	require.NoError(t, err)
	second, err := devmapper.Open()
	require.NoError(t, err)
	require.NoError(t, first.Lock("pool"))
	require.NoError(t, first.Lock("pool"), "again")
	err = second.Lock("pool")
	require.ErrorIs(t, err, devmapper.ErrLocked)
	require.ErrorContains(t, err, fmt.Sprintf("pool is locked by process %d (%s", os.Getpid(), os.Args[0]))
	require.NoError(t, second.Lock("other pool"))
	require.NoError(t, first.Close())
	require.NoError(t, second.Lock("pool"))
	require.NoError(t, second.Close())
	require.ErrorIs(t, second.Lock("pool"), os.ErrClosed)
}
