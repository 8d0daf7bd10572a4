package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testRestart: a container keeps running while the daemon is stopped or killed, and can be managed when the daemon runs
// again.
func testRestart(t *testing.T, b *testbed) {
	if b.thinsnap == nil {
		t.Skip("the stand-in is part of containerd")
	}
	nerdctl := func(args ...string) string { return b.Nerdctl(t, b.snapshotter, args...) }
	image := b.images.Busybox
	nerdctl("pull", "--quiet", image)
	nerdctl("run", "--detach", "--name", "counter", "--net", "none", image, "sh", "-c",
		"i=0; while sleep 0.1; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; done")

	// /proc/PID/root is the container's file system, seen from the host.
	pid := nerdctl("inspect", "--format", "{{.State.Pid}}", "counter")
	count := func() int {
		content, err := os.ReadFile(filepath.Join("/proc", pid, "root/count"))
		if errors.Is(err, os.ErrNotExist) {
			return 0 // not written yet
		}
		require.NoError(t, err)
		n, err := strconv.Atoi(strings.TrimSpace(string(content)))
		require.NoError(t, err)
		return n
	}
	goesOn := func() {
		t.Helper()
		before := count()
		require.Eventually(t, func() bool { return count() > before }, 30*time.Second, 100*time.Millisecond)
	}
	goesOn()
	for _, end := range []struct {
		name string
		stop func()
	}{
		{"stopped", func() { b.thinsnap.Stop(t) }},
		{"killed", b.thinsnap.Kill},
	} {
		t.Logf("the daemon is %s", end.name)
		end.stop()
		goesOn()
		b.thinsnap.Start(t)
		b.AwaitSnapshotter(t, b.snapshotter)
		require.NotEmpty(t, nerdctl("exec", "counter", "cat", "/count"))
		nerdctl("commit", "counter", "counted:"+end.name)
		require.NotEmpty(t, nerdctl("run", "--rm", "--net", "none", "counted:"+end.name, "cat", "/count"))
		b.CheckLayers(t)
		nerdctl("rmi", "counted:"+end.name)
		goesOn()
	}
	nerdctl("rm", "--force", "counter")
	nerdctl("rmi", image)
}
