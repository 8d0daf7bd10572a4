package devmapper_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// awaitUdev waits until udevd has handled every event. It skips the test without udevd; the other
// tests cover the nodes without it.
func awaitUdev(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/run/udev/control"); err != nil {
		t.Skip("udevd does not run")
	}
	out, err := exec.CommandContext(t.Context(), "udevadm", "settle", "--timeout=120").CombinedOutput()
	require.NoError(t, err, string(out))
}

// TestKernelUdevLeavesDevicesAlone: the flags of the uevents keep udev's rules from opening a
// device to look for a file system. So its file system is not in udev's database, and the device is
// never busy.
func TestKernelUdevLeavesDevicesAlone(t *testing.T) {
	c := open(t)
	awaitUdev(t)
	p := dmpool.New(t, 64<<20, 4<<20)
	require.NoError(t, p.CreateThin(1))
	table := []devmapper.Target{{Length: 32 << 11, Type: "thin", Params: p.Number + " 1"}}
	_, err := c.Activate("dmudev", "THINSNAP-dmudev", table, false)
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-L", "found",
		devmapper.NodePath("dmudev")).CombinedOutput()
	require.NoError(t, err, string(out))
	// mkfs had it open for writing, and udev probes a device after that.
	awaitUdev(t)
	require.NoError(t, c.Deactivate("dmudev"))

	for range 5 {
		_, err := c.Activate("dmudev", "THINSNAP-dmudev", table, false)
		require.NoError(t, err)
		require.FileExists(t, devmapper.NodePath("dmudev"))
		require.NoError(t, c.Deactivate("dmudev"), "no other process has it open")
	}
	awaitUdev(t)
	_, err = os.Lstat(devmapper.NodePath("dmudev"))
	require.ErrorIs(t, err, os.ErrNotExist)

	d := device(t, c, "dmudev", table)
	awaitUdev(t)
	link, err := os.Readlink(devmapper.NodePath("dmudev"))
	require.NoError(t, err)
	require.Equal(t, "../dm-"+strings.Split(d.Number(), ":")[1], link)
	info, err := exec.CommandContext(t.Context(), "udevadm", "info", "--query=property",
		"--name="+devmapper.NodePath("dmudev")).CombinedOutput()
	require.NoError(t, err, string(info))
	require.Contains(t, string(info), "DM_NAME=dmudev")
	require.Contains(t, string(info), "DM_ACTIVATION=1")
	require.NotContains(t, string(info), "DEVLINKS", "no links by label or uuid, nor a link in /dev/mapper that udev could remove")
	require.NotContains(t, string(info), "ID_FS_TYPE")
	require.NoError(t, c.Deactivate("dmudev"))
	awaitUdev(t)
	_, err = os.Lstat(devmapper.NodePath("dmudev"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
