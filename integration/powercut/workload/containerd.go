package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	snapshotters "github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/integration/powercut/images"
)

const (
	registryAddress  = "127.0.0.1:5000"
	containerdState  = "/run/powercut-containerd"
	containerdSocket = containerdState + "/containerd.sock"
)

// containerd is a running containerd with its data on the disk, which unpacks for
// thinsnap, and a registry that it pulls from.
type containerd struct {
	snapshotter snapshotters.Snapshotter
	env         []string
	ctr         string
	cmd         *exec.Cmd
	ended       chan struct{}
	conn        *grpc.ClientConn
	registry    *http.Server
}

func startContainerd(ctx context.Context, o options, root string) (*containerd, error) {
	const file = "/run/powercut-containerd.toml"
	config := fmt.Sprintf(`
version = 4
root = %q
state = %q
imports = []
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[plugins.'io.containerd.server.v1.grpc']
  address = %q
[plugins.'io.containerd.server.v1.ttrpc']
  address = %q
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = %q
[plugins.'io.containerd.internal.v1.opt']
  path = %q
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'thinsnap'
[proxy_plugins.thinsnap]
  type = 'snapshot'
  address = %q
`, root, containerdState, containerdSocket, containerdSocket+".ttrpc", containerdState+"/s", root+"/opt", thinsnapSocket)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	c := &containerd{
		env:   append(os.Environ(), fmt.Sprintf("PATH=%s:%s:%s", o.containerd, o.runc, os.Getenv("PATH"))),
		ctr:   filepath.Join(o.containerd, "ctr"),
		ended: make(chan struct{}),
	}
	c.cmd = exec.Command(filepath.Join(o.containerd, "containerd"), "--config", file)
	c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr = c.env, os.Stderr, os.Stderr
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait() // that it has ended is what counts
		close(c.ended)
	}()
	listener, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	c.registry = &http.Server{Handler: images.Registry{Seed: o.seed}}
	go func() { _ = c.registry.Serve(listener) }() // until it is closed
	if c.conn, c.snapshotter, err = dial(containerdSocket); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	if err := answering(ctx, c.snapshotter, c.ended); err != nil {
		return nil, errors.Join(fmt.Errorf("containerd: %w", err), c.stop())
	}
	return c, nil
}

// stop ends containerd in order.
func (c *containerd) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	<-c.ended
	var err error
	if c.conn != nil {
		err = c.conn.Close()
	}
	if c.registry != nil {
		err = errors.Join(err, c.registry.Close())
	}
	return err
}

// run runs ctr and returns the lines that it printed.
func (c *containerd) run(ctx context.Context, args ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, c.ctr, append([]string{"--address", containerdSocket, "--namespace", "powercut"}, args...)...)
	cmd.Env = c.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ctr %s: %w: %s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return strings.Fields(stdout.String()), nil
}
