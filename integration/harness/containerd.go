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
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Containerd is a running containerd with data of its own.
type Containerd struct {
	Release Release
	// Root is the directory of its data.
	Root string

	// Namespace is the one that ctr and nerdctl work in.
	Namespace string

	config  config
	ctr     command
	nerdctl command
	process *Process
}

// Setup is what a containerd is started with.
type Setup struct {
	// Dir is a directory on a real file system for all of its data.
	Dir string
	// Proxies are the snapshotters beside its own.
	Proxies []Proxy
	// Devmapper configures its own snapshotter on a thin pool; nil leaves it off.
	Devmapper *Devmapper
	// CRI is the configuration of the CRI's plugins, with which they are on. The namespace is then theirs.
	CRI string
}

// CRINamespace is where containerd keeps what is Kubernetes's.
const CRINamespace = "k8s.io"

// StartContainerd starts containerd with its data on a new file system. Images can be unpacked for its own snapshotters
// overlayfs and native, and for the proxies.
func StartContainerd(t testing.TB, tools Tools, release Release, proxies ...Proxy) *Containerd {
	t.Helper()
	return StartContainerdWith(t, tools, release, Setup{Dir: NewDisk(t), Proxies: proxies})
}

// StartContainerdWith is StartContainerd with a directory and snapshotters to choose.
func StartContainerdWith(t testing.TB, tools Tools, release Release, setup Setup) *Containerd {
	t.Helper()
	at := func(name string) string { return filepath.Join(setup.Dir, name) }
	config := config{
		root:         at("containerd"),
		state:        ShortDir(t),
		proxies:      setup.Proxies,
		devmapper:    setup.Devmapper,
		snapshotters: []string{"overlayfs", "native"},
		cri:          setup.CRI,
	}
	for _, proxy := range setup.Proxies {
		config.snapshotters = append(config.snapshotters, proxy.Name)
	}
	// The devmapper snapshotter executes dmsetup, which leaves the device nodes to udevd, be it there or not.
	var more []string
	if setup.Devmapper != nil {
		config.snapshotters = append(config.snapshotters, DevmapperName)
		more = append(more, "DM_DISABLE_UDEV=1")
	}
	file := at("config.toml")
	require.NoError(t, os.WriteFile(file, []byte(config.render(release)), 0o600))

	// containerd and its shim look for the shim and for runc in PATH.
	env := withPath([]string{release.Dir, filepath.Dir(tools.Runc)},
		append(more, "DOCKER_CONFIG="+at("docker"), "NERDCTL_TOML="+at("nerdctl.toml"))...)
	// runc keeps containers of one namespace together, whichever containerd they are of: so each has a name of its own.
	namespace := filepath.Base(config.state)
	if setup.CRI != "" {
		namespace = CRINamespace
	}
	connect := []string{"--address", config.socket(), "--namespace", namespace}
	c := &Containerd{
		Release:   release,
		Root:      config.root,
		config:    config,
		Namespace: namespace,
		ctr:       command{env: env, program: filepath.Join(release.Dir, "ctr"), args: connect},
		nerdctl: command{env: env, program: tools.Nerdctl, args: append(slices.Clone(connect),
			"--data-root", at("nerdctl"), "--cgroup-manager", "cgroupfs",
			"--cni-path", at("cni"), "--cni-netconfpath", at("net.d"))},
	}
	cmd := exec.Command(filepath.Join(release.Dir, "containerd"), "--config", file)
	cmd.Env = env
	c.process = start(t, t, setup.Dir, release.Name, cmd, func() bool {
		_, err := c.TryCtr("version")
		return err == nil
	})
	t.Cleanup(func() {
		c.removeAll(t)
		c.process.Stop(t)
		UnmountBelow(t, c.config.state)
		// runc leaves it, empty, or never made it.
		if err := os.Remove(filepath.Join("/run/containerd/runc", c.Namespace)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("clean up: %v", err)
		}
	})
	return c
}

// removeAll removes what tests have made, as a test that failed could not do so itself.
func (c *Containerd) removeAll(t testing.TB) {
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
func (c *Containerd) Ctr(t testing.TB, args ...string) string {
	t.Helper()
	return c.ctr.must(t, args...)
}

// TryCtr runs ctr where a failure is an answer.
func (c *Containerd) TryCtr(args ...string) (string, error) { return c.ctr.run(args...) }

// Nerdctl runs nerdctl with a snapshotter and returns what it printed.
func (c *Containerd) Nerdctl(t testing.TB, snapshotter string, args ...string) string {
	t.Helper()
	return c.nerdctl.must(t, append([]string{"--snapshotter", snapshotter}, args...)...)
}

// NerdctlCommand is the command that [Containerd.Nerdctl] runs.
func (c *Containerd) NerdctlCommand(snapshotter string, args ...string) *exec.Cmd {
	cmd := exec.Command(c.nerdctl.program, slices.Concat(c.nerdctl.args, []string{"--snapshotter", snapshotter}, args)...)
	cmd.Env = c.nerdctl.env
	return cmd
}

// AwaitSnapshotter waits until the daemon can use a snapshotter that was away and that has a snapshot. It waits up to 3.6
// seconds between two attempts to connect, and fails meanwhile.
func (c *Containerd) AwaitSnapshotter(t testing.TB, name string) {
	t.Helper()
	c.process.await(t, func() bool {
		_, err := c.TryCtr("snapshots", "--snapshotter", name, "ls")
		return err == nil
	})
}

// PID is the daemon's.
func (c *Containerd) PID() int { return c.process.cmd.Process.Pid }

// Connect connects to the daemon. The connection ends with the test.
func (c *Containerd) Connect(t testing.TB) *grpc.ClientConn {
	t.Helper()
	return connect(t, c.config.socket())
}

func connect(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// ShortDir is a temporary directory with a path that is short enough for sockets, which may have 107 bytes (unix(7)).
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ts")
	require.NoError(t, err)
	// Containers of other users have their root file systems below it.
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}
