package blockdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestKernelAutoClear: a loop device exists exactly as long as a mapped device is on top of it.
func TestKernelAutoClear(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(1<<20), f.Close()))
	l, err := blockdev.LoopAttach(path, blockdev.LoopOptions{DirectIO: true})
	require.NoError(t, err)
	c, err := devmapper.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	_, err = c.Activate("dmauto", "", []devmapper.Target{
		{Length: 2048, Type: "linear", Params: l.Number() + " 0"},
	}, false)
	require.NoError(t, err)

	require.NoError(t, l.Close())
	state, err := blockdev.LoopInfo(l.Path)
	require.NoError(t, err)
	require.Equal(t, path, state.BackingFile, "held by the device on top")
	_, err = os.OpenFile(l.Path, os.O_RDWR|unix.O_EXCL, 0)
	require.ErrorIs(t, err, unix.EBUSY, "in use by another device")

	require.NoError(t, c.Deactivate("dmauto"))
	require.Eventually(t, func() bool {
		_, err := blockdev.LoopInfo(l.Path)
		return errors.Is(err, unix.ENXIO)
	}, 5*time.Second, 10*time.Millisecond)
}
