package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Containerd is a containerd with data of its own.
type Containerd struct {
	*Process // nil before the first start
	Setup
	Release Release

	env     []string // of the daemon and its clients
	ctr     string
	nerdctl string
}

// Setup is the configuration of a containerd.
type Setup struct {
	// Dir is the directory of its configuration and log.
	Dir string
	// Root is the directory of its data, on a real file system: by default, a directory in Dir.
	Root string
	// State is the directory of its sockets, whose paths have a maximum length.
	State string
	// Namespace is the namespace of ctr and nerdctl: by default, the name of State. runc keeps the containers of equal
	// namespaces in one directory, even those of several containerds.
	Namespace string
	// Proxies are the snapshotters in other programs.
	Proxies []Proxy
	// Devmapper configures containerd's own devmapper snapshotter; nil disables it.
	Devmapper *Devmapper
	// CRI is the configuration of the CRI plugins in the release's version; "" disables them. With it, the default of
	// Namespace is [CRINamespace].
	CRI string
	// Programs is the first directory in the PATH of the daemon and its clients.
	Programs string
	// Env is added to the environment of the daemon and its clients.
	Env []string
	// Output gets the daemon's output; nil means a log in Dir.
	Output *os.File
}

// CRINamespace is containerd's namespace for Kubernetes.
const CRINamespace = "k8s.io"

// NewContainerd writes the configuration of a containerd. It can unpack images for its own snapshotters overlayfs and
// native, and for the proxies.
func NewContainerd(tools Tools, release Release, setup Setup) (*Containerd, error) {
	at := func(name string) string { return filepath.Join(setup.Dir, name) }
	setup.Root = cmp.Or(setup.Root, at("containerd"))
	if setup.CRI != "" {
		setup.Namespace = cmp.Or(setup.Namespace, CRINamespace)
	}
	setup.Namespace = cmp.Or(setup.Namespace, filepath.Base(setup.State))
	nerdctl := fmt.Sprintf("data_root = %q\ncgroup_manager = 'cgroupfs'\ncni_path = %q\ncni_netconfpath = %q\n",
		at("nerdctl"), at("cni"), at("net.d"))
	// containerd and its shim search PATH for the shim and for runc.
	path := fmt.Sprintf("PATH=%s:%s:%s", release.Dir, filepath.Dir(tools.Runc), os.Getenv("PATH"))
	if setup.Programs != "" {
		path = strings.Replace(path, "=", "="+setup.Programs+":", 1)
	}
	c := &Containerd{
		Setup:   setup,
		Release: release,
		env: append(os.Environ(), path, "CONTAINERD_ADDRESS="+setup.socket(), "CONTAINERD_NAMESPACE="+setup.Namespace,
			"DOCKER_CONFIG="+at("docker"), "NERDCTL_TOML="+at("nerdctl.toml")),
		ctr:     filepath.Join(release.Dir, "ctr"),
		nerdctl: tools.Nerdctl,
	}
	c.env = append(c.env, setup.Env...)
	if setup.Devmapper != nil {
		// The devmapper snapshotter runs dmsetup, which would leave the device nodes to udevd even if none runs.
		c.env = append(c.env, "DM_DISABLE_UDEV=1")
	}
	if err := os.MkdirAll(setup.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(at("nerdctl.toml"), []byte(nerdctl), 0o600); err != nil {
		return nil, err
	}
	return c, os.WriteFile(c.Config(), []byte(setup.render(release)), 0o600)
}

// Config returns the path of the configuration. A change takes effect at the next start.
func (c *Containerd) Config() string { return filepath.Join(c.Dir, "config.toml") }

// Start starts the daemon and waits until it answers.
func (c *Containerd) Start() (err error) {
	cmd := exec.Command(filepath.Join(c.Release.Dir, "containerd"), "--config", c.Config())
	cmd.Env = c.env
	if c.Process, err = launch(cmd, c.Dir, c.Release.Name, c.Output); err != nil {
		return err
	}
	return c.Await(c.answers)
}

// answers reports whether the daemon answers. It does not use ctr, which would slow down a starting daemon in an
// emulated guest.
func (c *Containerd) answers() bool {
	conn, err := c.Dial()
	if err != nil {
		return false
	}
	defer conn.Close()
	_, err = version.NewVersionClient(conn).Version(context.Background(), &emptypb.Empty{})
	return err == nil
}

// RemoveAll removes all tasks, containers and images.
func (c *Containerd) RemoveAll() (err error) {
	conn, err := c.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx := namespaces.WithNamespace(context.Background(), c.Namespace)
	for _, step := range []struct {
		list   func() ([]string, error)
		remove string
	}{
		{func() (ids []string, err error) {
			all, err := tasks.NewTasksClient(conn).List(ctx, &tasks.ListTasksRequest{})
			for _, task := range all.GetTasks() {
				ids = append(ids, task.ID)
			}
			return ids, err
		}, "tasks rm --force"},
		{func() (ids []string, err error) {
			all, err := containers.NewContainersClient(conn).List(ctx, &containers.ListContainersRequest{})
			for _, container := range all.GetContainers() {
				ids = append(ids, container.ID)
			}
			return ids, err
		}, "containers rm"},
		{func() (names []string, err error) {
			all, err := images.NewImagesClient(conn).List(ctx, &images.ListImagesRequest{})
			for _, image := range all.GetImages() {
				names = append(names, image.Name)
			}
			return names, err
		}, "images rm --sync"},
	} {
		names, listErr := step.list()
		err = errors.Join(err, listErr)
		for _, name := range names {
			_, removeErr := c.TryCtr(append(strings.Fields(step.remove), name)...)
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// Env returns an environment in which ctr and nerdctl, by name, are clients of the daemon.
func (c *Containerd) Env() []string { return c.env }

// TryCtr runs ctr and returns its standard output.
func (c *Containerd) TryCtr(args ...string) (string, error) { return Run(c.env, c.ctr, args...) }

// TryNerdctl runs nerdctl with a snapshotter and returns its standard output.
func (c *Containerd) TryNerdctl(snapshotter string, args ...string) (string, error) {
	return Run(c.env, c.nerdctl, append([]string{"--snapshotter", snapshotter}, args...)...)
}

// NerdctlCommand returns the command of [Containerd.TryNerdctl].
func (c *Containerd) NerdctlCommand(snapshotter string, args ...string) *exec.Cmd {
	cmd := exec.Command(c.nerdctl, append([]string{"--snapshotter", snapshotter}, args...)...)
	cmd.Env = c.env
	return cmd
}

// Address returns the path of the daemon's socket.
func (c *Containerd) Address() string { return c.socket() }

// Dial connects to the daemon.
func (c *Containerd) Dial() (*grpc.ClientConn, error) { return dial(c.Address()) }

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}
