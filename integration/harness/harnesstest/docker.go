package harnesstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// Docker is a Docker Engine whose images and containers are in a containerd.
type Docker struct {
	*harness.Process

	client string
	env    []string
}

// StartDocker starts a Docker Engine from unpacked packages in a directory. It uses a snapshotter of the containerd, by
// the configuration file in docs/getting-started.md, and has no networks. The Engine ends with the test. The caller
// removes its objects in containerd's namespace "moby".
func StartDocker(t testing.TB, packages string, c *Containerd, snapshotter string) *Docker {
	t.Helper()
	dir := ShortDir(t)
	address := "unix://" + dir + "/docker.sock"
	bin := func(name string) string { return filepath.Join(packages, "usr", name) }
	for name, content := range map[string]string{
		"daemon.json": fmt.Sprintf(`{"features": {"containerd-snapshotter": true}, "storage-driver": %q}`, snapshotter),
		"config.json": fmt.Sprintf(`{"cliPluginsExtraDirs": [%q]}`, bin("libexec/docker/cli-plugins")),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	d := &Docker{client: bin("bin/docker"), env: append(c.Env(), "DOCKER_HOST="+address, "DOCKER_CONFIG="+dir)}
	cmd := exec.Command(bin("sbin/dockerd"), "--host", address, "--containerd", c.State+"/containerd.sock",
		"--data-root", filepath.Join(c.Dir, "docker"), "--exec-root", dir+"/exec", "--pidfile", dir+"/docker.pid",
		"--config-file", dir+"/daemon.json", "--exec-opt", "native.cgroupdriver=cgroupfs", "--bridge", "none",
		"--iptables=false", "--ip6tables=false",
		"--ip-forward=false", "--userland-proxy=false")
	cmd.Env = d.env
	var err error
	d.Process, err = harness.Start(cmd, dir, "docker", func() bool {
		_, err := harness.Run(d.env, d.client, "version")
		return err == nil
	})
	end(t, d.Process)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, d.Stop())
		UnmountBelow(t, dir)
	})
	return d
}

// Try runs docker, and returns its standard output and its error.
func (d *Docker) Try(args ...string) (string, error) { return harness.Run(d.env, d.client, args...) }

// Run runs docker with variables added to its environment, and returns its standard output.
func (d *Docker) Run(t testing.TB, env []string, args ...string) string {
	t.Helper()
	return must(t, "docker", func(args ...string) (string, error) {
		return harness.Run(append(d.env, env...), d.client, args...)
	}, args...)
}
