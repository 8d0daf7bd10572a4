package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestImageOnABlankDisk runs thinsnap from its image, as the DaemonSet does. thinsnap makes a pool with the image's
// LVM, serves the containerd that runs it, and removes the pool.
func TestImageOnABlankDisk(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.RequireThorough(t)
	dmtest.NoLeaks(t)
	overlay, err := os.ReadFile("../deploy/kubernetes/overlays/containerd/install/kustomization.yaml")
	require.NoError(t, err)
	tag := regexp.MustCompile(`newTag: (\S+)`).FindSubmatch(overlay)
	require.NotNil(t, tag)
	image := "localhost/thinsnap:" + string(tag[1])
	archive, err := filepath.Abs("../.reports/image.tar")
	require.NoError(t, err)
	require.FileExists(t, archive, "make test-thorough-image builds it")
	device := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, device, "THINSNAP_DISK0 names a disk that may be overwritten")
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	busybox := harnesstest.StartRegistry(t, tools).Busybox
	d := harnesstest.NewThinsnap(t, tools, "image", harness.Options{Device: device})
	require.NoError(t, os.MkdirAll(d.Root, 0o700))
	c := harnesstest.StartContainerd(t, tools, tools.Releases[0], d.Proxy())
	c.Ctr(t, "image", "import", archive)
	// inImage returns the command line of a thinsnap in a container with the DaemonSet's mounts.
	inImage := func(options []string, name string, args ...string) []string {
		bind := func(dir, options string) string {
			return "type=bind,src=" + dir + ",dst=" + dir + ",options=" + options
		}
		command := append([]string{"run", "--snapshotter", "overlayfs", "--privileged", "--net-host", "--with-ns", "pid:/proc/1/ns/pid"}, options...)
		command = append(command, "--mount", bind("/dev", "rbind:rw"), "--mount", bind(filepath.Dir(d.Config()), "rbind:ro"),
			"--mount", bind(d.Root, "rbind:rshared:rw"), "--mount", bind(d.Sockets, "rbind:rw"),
			image, name, "/usr/bin/thinsnap", "--config", d.Config())
		return append(command, args...)
	}
	log := filepath.Join(t.TempDir(), "log")
	t.Cleanup(func() {
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("%s", text)
		}
	})
	c.Ctr(t, inImage([]string{"--detach", "--log-uri", "file://" + log}, "daemon", "serve")...)
	require.Eventually(t, d.Ready, makingLimit, 100*time.Millisecond)
	require.Contains(t, d.Run(t, "info"), "\nPool Mode: direct-lvm\n")
	c.AwaitSnapshotter(t, harness.ThinsnapName)
	c.Pull(t, harness.ThinsnapName, busybox)
	root := c.Ctr(t, "run", "--rm", "--snapshotter", harness.ThinsnapName, busybox, "box", "sh", "-c", `grep " / " /proc/mounts`)
	require.Regexp(t, `^/dev/mapper/image-snap-\d+ / ext4 rw,`, root)
	require.Contains(t, c.Ctr(t, "tasks", "exec", "--exec-id", "check", "daemon", "/usr/bin/thinsnap", "--config", d.Config(), "check"),
		"no problems found")
	c.RemoveImage(t, busybox)

	c.Ctr(t, "tasks", "kill", "daemon")
	require.Eventually(t, func() bool {
		return strings.Contains(c.Ctr(t, "tasks", "list"), "STOPPED")
	}, time.Minute, 100*time.Millisecond)
	c.Ctr(t, "tasks", "rm", "daemon")
	c.Ctr(t, "containers", "rm", "daemon")
	c.Ctr(t, inImage([]string{"--rm"}, "destroy", "pool", "destroy", "--yes")...)
	require.Empty(t, command(t, "wipefs", "--noheadings", device))
}
