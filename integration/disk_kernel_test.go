package integration

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// makingLimit bounds the time that LVM takes to make a pool. A guest without KVM is slow.
const makingLimit = 3 * time.Minute

// TestOnABlankDisk: thinsnap makes a pool on the blank disk that its configuration names, and activates it after a
// restart of the machine. A container runs each time.
func TestOnABlankDisk(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	device := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, device, "THINSNAP_DISK0 names a disk that may be overwritten")
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	image := harnesstest.StartRegistry(t, tools).Busybox
	d := harnesstest.NewThinsnap(t, tools, "blank-disk", harness.Options{Device: device})
	serve := func() {
		d.Launch(t)
		require.Eventually(t, d.Ready, makingLimit, 100*time.Millisecond)
	}
	require.Contains(t, d.Run(t, "pool", "create", "--dry-run"), "\nvgcreate --yes --addtag THINSNAP-")
	serve()
	c := harnesstest.StartContainerd(t, tools, tools.Releases[0], d.Proxy())
	run := func(name string) {
		t.Helper()
		root := c.Ctr(t, "run", "--rm", "--snapshotter", harness.ThinsnapName, image, name, "sh", "-c",
			`grep " / " /proc/mounts; echo text > /written; sync`)
		require.Regexp(t, `^/dev/mapper/blank-disk-snap-\d+ / ext4 rw,`, root)
	}
	c.Pull(t, harness.ThinsnapName, image)
	run("first")
	require.Contains(t, d.Run(t, "info"), "\nPool Name: blank--disk-pool\nPool Mode: direct-lvm\n")
	d.Stop(t)

	for _, name := range harnesstest.MappedDevices(t, "blank-disk-snap-") {
		command(t, "dmsetup", "remove", name)
	}
	command(t, "vgchange", "--activate", "n", "blank-disk")
	require.Empty(t, harnesstest.MappedDevices(t, "blank-"))
	serve()
	c.AwaitSnapshotter(t, harness.ThinsnapName)
	run("second")
	require.Contains(t, d.Run(t, "check"), "no problems found")
	c.RemoveImage(t, image)
	d.Stop(t)
	require.NoError(t, d.Destroy())
	require.Empty(t, command(t, "wipefs", "--noheadings", device))
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return strings.TrimSpace(string(out))
}
