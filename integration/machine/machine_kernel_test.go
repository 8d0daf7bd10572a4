// Package machine boots virtual machines from snapshots, like Kata Containers and Firecracker.
package machine

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// committed is nerdctl's full name of the image "committed:1".
const committed = "docker.io/library/committed:1"

// node is a containerd with a thinsnap, whose containers are virtual machines.
type node struct {
	*harnesstest.Containerd
	thinsnap *harnesstest.Thinsnap
}

// TestMachine boots a machine from a container's snapshot. The machine writes, and is killed. While it runs, its
// snapshot is forked, and committed to an image. Machines boot from both, and from the snapshot itself, which has all
// synced data.
func TestMachine(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.RequireThorough(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	harnesstest.Cell(t, "QEMU", "qemu-system-x86_64")
	images := harnesstest.StartRegistry(t, tools)
	thinsnap := harnesstest.StartThinsnap(t, tools, "machine")
	proxy := thinsnap.Proxy()
	proxy.Differ = "thinsnap-diff"
	n := &node{harnesstest.StartContainerd(t, tools, tools.Releases[0], proxy), thinsnap}
	n.Pull(t, harness.ThinsnapName, images.Busybox)
	n.create(t, images.Busybox, "warm")

	warm := n.boot(t, "warm")
	run(t, warm, "mkdir -p /proc && mount -t proc none /proc")
	require.Regexp(t, `^/dev/(vda|root) / ext4 rw`, run(t, warm, "grep ' / ext4 ' /proc/mounts"))
	run(t, warm, "echo warm > /state && rm /data/numbers && mv /etc/passwd /moved && sync")
	n.fork(t, "warm", "box")
	n.Nerdctl(t, harness.ThinsnapName, "commit", "--pause=false", "warm", committed)
	run(t, warm, "echo later > /state && sync && echo lost > /unsynced")

	const look = "cat /state /moved && ls /data /etc"
	want := strings.Replace(run(t, warm, look), "later", "warm", 1)
	n.create(t, committed, "second")
	for _, container := range []string{"box", "second"} {
		m := n.boot(t, container)
		require.Equal(t, want, run(t, m, look), container)
		run(t, m, "echo "+container+" > /state && sync")
		m.Kill()
	}
	require.Equal(t, "later", run(t, warm, "cat /state"))
	warm.Kill()
	warm = n.boot(t, "warm")
	require.Equal(t, "later", run(t, warm, "cat /state"))
	warm.Kill()

	differ := n.thinsnap.Info(t).Differ
	require.EqualValues(t, 1, differ.Inodes, "%+v", differ)
	require.Zero(t, differ.Walked+differ.Left+differ.Failed, "%+v", differ)
	for _, container := range []string{"warm", "box", "second"} {
		n.Ctr(t, "containers", "rm", container)
	}
	n.RemoveImage(t, committed)
	n.RemoveImage(t, images.Busybox)
	require.Empty(t, n.Snapshots(t, harness.ThinsnapName))
}

// create makes a container without starting it, so that its snapshot is not mounted.
func (n *node) create(t *testing.T, image, id string) {
	t.Helper()
	n.Ctr(t, "containers", "create", "--snapshotter", harness.ThinsnapName, image, id)
}

func (n *node) fork(t *testing.T, source, container string) {
	t.Helper()
	_, err := n.thinsnap.TryRun(n.Env(), "fork", source, container)
	require.NoError(t, err)
}

// boot starts a machine on the same disk as Kata: the source of the snapshot's only mount.
func (n *node) boot(t *testing.T, container string) *vm.RootDisk {
	t.Helper()
	mounts := strings.TrimSpace(n.Ctr(t, "snapshots", "--snapshotter", harness.ThinsnapName, "mounts", "/mnt", container))
	mount := regexp.MustCompile(`^mount -t ext4 (/dev/mapper/\S+) /mnt( -o \S+)?$`).FindStringSubmatch(mounts)
	require.NotNil(t, mount, "not one mount of one block device: %s", mounts)
	m, err := vm.BootRootDisk(t.Context(), mount[1])
	require.NoError(t, err)
	t.Cleanup(m.Kill)
	return m
}

func run(t *testing.T, m *vm.RootDisk, command string) string {
	t.Helper()
	printed, err := m.Run(t.Context(), command)
	require.NoError(t, err)
	return printed
}
