package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestDifferConfiguration has containerd read the configurations in docs/commit.md while nothing listens on thinsnap's
// socket. The newest containerd loads the differ from versions 2 and 3 of the configuration, and containerd 1.7 from
// version 2. A containerd before 1.7.4 does not start.
func TestDifferConfiguration(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	documented := codeOf(t, "../docs/commit.md", "[proxy_plugins")
	documented += codeOf(t, "../docs/commit.md", "[plugins.\"io.containerd.service")
	for name, of := range map[string]struct {
		release harness.Release
		version int
	}{
		"version 2": {tools.Releases[0], 2}, "version 3": {tools.Releases[0], 3}, "containerd 1.7": {tools.Containerd17, 2},
	} {
		t.Run(name, func(t *testing.T) {
			if of.release == tools.Containerd17 {
				dmtest.RequireThorough(t)
			}
			c := startConfigured(t, of.release, of.version, documented)
			require.Eventually(t, func() bool {
				out, err := c.ctr("plugins", "ls")
				return err == nil && pluginIs(out, "thinsnap-diff", "ok") && pluginIs(out, "diff-service", "ok") &&
					pluginIs(out, "walking", "ok")
			}, time.Minute, 100*time.Millisecond)
		})
	}
	t.Run("before 1.7.4", func(t *testing.T) {
		c := startConfigured(t, tools.Releases[1], 2, documented)
		select {
		case <-c.ended:
			require.Contains(t, c.output.String(), "panic")
		case <-time.After(time.Minute):
			require.Fail(t, "it runs")
		}
	})
}

func pluginIs(list, id, state string) bool {
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) == 4 && fields[1] == id {
			return fields[3] == state
		}
	}
	return false
}

// codeOf returns the code of a document from the line that begins with start to the next empty line.
func codeOf(t *testing.T, path, start string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	_, code, found := strings.Cut(string(text), "\n    "+start)
	require.True(t, found, start)
	code, _, _ = strings.Cut("    "+start+code, "\n\n")
	return strings.ReplaceAll(code, "    ", "") + "\n"
}

// configured is a containerd whose configuration may keep it from starting.
type configured struct {
	ended  chan struct{}
	output bytes.Buffer // complete when ended is closed
	ctr    func(args ...string) (string, error)
}

func startConfigured(t *testing.T, release harness.Release, version int, configuration string) *configured {
	t.Helper()
	dir := harnesstest.ShortDir(t)
	service := "grpc"
	if version > 2 {
		service = "plugins.'io.containerd.server.v1.grpc'"
	}
	head := fmt.Sprintf("version = %d\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.grpc.v1.cri', "+
		"'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.nri.v1.nri']\n"+
		"[%s]\n  address = %q\n", version, dir+"/root", dir+"/state", service, dir+"/c.sock")
	path := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(path, []byte(head+configuration), 0o600))
	c := &configured{ended: make(chan struct{}), ctr: func(args ...string) (string, error) {
		return harness.Run(os.Environ(), filepath.Join(release.Dir, "ctr"), append([]string{"--address", dir + "/c.sock"}, args...)...)
	}}
	cmd := exec.Command(filepath.Join(release.Dir, "containerd"), "--config", path)
	cmd.Stdout, cmd.Stderr = &c.output, &c.output
	require.NoError(t, cmd.Start())
	go func() {
		defer close(c.ended)
		_ = cmd.Wait() // its output shows how it ended
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		<-c.ended
		if t.Failed() {
			t.Log(c.output.String())
		}
	})
	return c
}
