package snapshotter_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A crash between the making of a device and its table leaves a device that is of no use.
func TestHalfMadeDeviceIsNoActiveVolume(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, "a", "")
	require.NoError(t, err)
	device, err := h.control.Info(filepath.Base(mounts[0].Source))
	require.NoError(t, err)

	require.NoError(t, h.Close())
	require.NoError(t, h.control.Deactivate(device.Name))
	_, err = h.control.Create(device.Name, device.UUID)
	require.NoError(t, err)
	require.NoError(t, h.open(ctx, filesystems["ext4"]))
	usage, err := h.Usage(ctx, "a")
	require.NoError(t, err)
	require.Positive(t, usage.Size)
}
