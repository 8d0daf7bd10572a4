package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	snapshotters "github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/powercut/images"
)

const registryAddress = "127.0.0.1:5000"

// containerd is a running containerd that uses thinsnap, with its data on the disk, and a registry for it.
type containerd struct {
	*harness.Containerd
	snapshotter snapshotters.Snapshotter
	registry    *http.Server
}

func startContainerd(o options, thinsnap harness.Proxy) (*containerd, error) {
	tools := harness.Tools{Runc: filepath.Join(o.runc, "runc")}
	release := harness.Release{Name: "containerd", Dir: o.containerd, ConfigVersion: 4, Transfer: true, RemapIDs: true}
	daemon, err := harness.NewContainerd(tools, release, harness.Setup{
		Dir: "/run/powercut-containerd", State: "/run/powercut-containerd/state",
		Root:      filepath.Join(directory, "containerd"),
		Namespace: namespace, Proxies: []harness.Proxy{thinsnap}, Output: os.Stderr,
	})
	if err != nil {
		return nil, err
	}
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	conn, err := daemon.Dial() // until this program ends
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return nil, err
	}
	c := &containerd{daemon, harness.Snapshotter(conn), &http.Server{Handler: images.Registry{Seed: o.seed}}}
	go func() { _ = c.registry.Serve(listener) }() // until it is closed
	return c, nil
}

func (c *containerd) stop() error { return errors.Join(c.Stop(), c.registry.Close()) }

// ctr runs ctr and returns the words of its output.
func (c *containerd) ctr(args ...string) ([]string, error) {
	out, err := c.TryCtr(args...)
	return strings.Fields(out), err
}
