package snapshotter_test

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
)

// A crash between the creation of a device and its table leaves an unusable device.
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

// A foreign device with the name of a removed snapshot's volume is kept; the deletion of the volume waits
// for the name.
func TestForeignDeviceInTheWayOfARemoval(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, "a", "")
	require.NoError(t, err)
	name := filepath.Base(mounts[0].Source)
	require.NoError(t, h.control.Deactivate(name))
	_, err = h.control.Create(name, "foreign")
	require.NoError(t, err)
	_, err = h.Mounts(ctx, "a")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.NoError(t, h.Remove(ctx, "a"))
	require.NoError(t, h.Cleanup(ctx))
	device, err := h.control.Info(name)
	require.NoError(t, err)
	require.Equal(t, "foreign", device.UUID)
	require.Equal(t, 1, h.trash(t))

	_, err = h.control.Remove(name, devmapper.RemoveOptions{})
	require.NoError(t, err)
	require.NoError(t, h.Cleanup(ctx))
	require.Zero(t, h.trash(t))
}
