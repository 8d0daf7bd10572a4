package harness

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Containerd is a running containerd with data of its own.
type Containerd struct {
	Release Release
	// Root is the directory of its data.
	Root string

	config    config
	namespace string
	ctr       command
	nerdctl   command
}

// StartContainerd starts containerd with its data on a new file system. Images can be unpacked for its own snapshotters
// overlayfs and native, and for the proxies.
func StartContainerd(t *testing.T, tools Tools, release Release, proxies ...Proxy) *Containerd {
	t.Helper()
	disk := NewDisk(t)
	at := func(name string) string { return filepath.Join(disk, name) }
	config := config{
		root:         at("containerd"),
		state:        ShortDir(t),
		proxies:      proxies,
		snapshotters: []string{"overlayfs", "native"},
	}
	for _, proxy := range proxies {
		config.snapshotters = append(config.snapshotters, proxy.Name)
	}
	file := at("config.toml")
	require.NoError(t, os.WriteFile(file, []byte(config.render(release)), 0o600))

	// containerd and its shim look for the shim and for runc in PATH.
	env := withPath([]string{release.Dir, filepath.Dir(tools.Runc)},
		"DOCKER_CONFIG="+at("docker"), "NERDCTL_TOML="+at("nerdctl.toml"))
	// runc keeps containers of one namespace together, whichever containerd they are of: so each has a name of its own.
	namespace := filepath.Base(config.state)
	connect := []string{"--address", config.socket(), "--namespace", namespace}
	c := &Containerd{
		Release:   release,
		Root:      config.root,
		config:    config,
		namespace: namespace,
		ctr:       command{env: env, program: filepath.Join(release.Dir, "ctr"), args: connect},
		nerdctl: command{env: env, program: tools.Nerdctl, args: append(slices.Clone(connect),
			"--data-root", at("nerdctl"), "--cgroup-manager", "cgroupfs",
			"--cni-path", at("cni"), "--cni-netconfpath", at("net.d"))},
	}
	cmd := exec.Command(filepath.Join(release.Dir, "containerd"), "--config", file)
	cmd.Env = env
	process := start(t, t, disk, release.Name, cmd, func() bool {
		_, err := c.TryCtr("version")
		return err == nil
	})
	t.Cleanup(func() {
		c.removeAll(t)
		process.Stop(t)
		UnmountBelow(t, c.config.state)
		// runc leaves it, empty, or never made it.
		if err := os.Remove(filepath.Join("/run/containerd/runc", c.namespace)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("clean up: %v", err)
		}
	})
	return c
}

// removeAll removes what tests have made, as a test that failed could not do so itself.
func (c *Containerd) removeAll(t *testing.T) {
	t.Helper()
	remove := func(list []string, commands ...[]string) {
		names, err := c.TryCtr(list...)
		if err != nil {
			t.Errorf("clean up: %v", err)
			return
		}
		for name := range strings.FieldsSeq(names) {
			for _, command := range commands {
				if out, err := c.TryCtr(append(command, name)...); err != nil {
					t.Logf("clean up: %v: %s", err, out)
				}
			}
		}
	}
	remove([]string{"tasks", "ls", "-q"}, []string{"tasks", "rm", "--force"})
	remove([]string{"containers", "ls", "-q"}, []string{"containers", "rm"})
	remove([]string{"images", "ls", "-q"}, []string{"images", "rm", "--sync"})
}

// Ctr runs ctr and returns what it printed.
func (c *Containerd) Ctr(t *testing.T, args ...string) string {
	t.Helper()
	return c.ctr.must(t, args...)
}

// TryCtr runs ctr where a failure is an answer.
func (c *Containerd) TryCtr(args ...string) (string, error) { return c.ctr.run(args...) }

// Nerdctl runs nerdctl with a snapshotter and returns what it printed.
func (c *Containerd) Nerdctl(t *testing.T, snapshotter string, args ...string) string {
	t.Helper()
	return c.nerdctl.must(t, append([]string{"--snapshotter", snapshotter}, args...)...)
}

// ShortDir is a temporary directory with a path that is short enough for sockets, which may have 107 bytes (unix(7)).
func ShortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ts")
	require.NoError(t, err)
	// Containers of other users have their root file systems below it.
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}
