package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// testCompose has nerdctl compose start two services, restarts one, which keeps its files, and removes both. The
// network that compose makes is unused.
func testCompose(t *testing.T, b *testbed) {
	harnesstest.Cell(t, "nerdctl compose", b.NerdctlCommand(b.snapshotter).Path)
	file := filepath.Join(t.TempDir(), "compose.yaml")
	service := func(name string) string {
		return fmt.Sprintf("  %s:\n    container_name: %[1]s\n    image: %s\n    network_mode: none\n"+
			"    command: sh -c 'echo %[1]s >> /state; trap exit TERM; sleep 1000 & wait'\n", name, b.images.Busybox)
	}
	require.NoError(t, os.WriteFile(file, []byte("services:\n"+service("one")+service("two")), 0o600))
	compose := func(args ...string) string {
		return b.Nerdctl(t, b.snapshotter, append([]string{"--cni-path", b.cni, "compose", "--file", file}, args...)...)
	}
	awaitStarts := func(name string, starts int) {
		t.Helper()
		require.NoError(t, b.Await(func() bool {
			out, err := b.TryNerdctl(b.snapshotter, "exec", name, "cat", "/state")
			return err == nil && strings.Count(out, name) == starts
		}))
	}
	compose("up", "--detach", "--quiet-pull")
	awaitStarts("one", 1)
	awaitStarts("two", 1)
	compose("restart", "one")
	awaitStarts("one", 2)
	compose("down")
	b.Nerdctl(t, b.snapshotter, "rmi", b.images.Busybox)
}
