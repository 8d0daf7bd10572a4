// Command workload uses a snapshotter, printing each operation before and after,
// until it is stopped, or, with -verify, holds a snapshotter against what an
// earlier workload has printed. It starts `thinsnap serve` itself, on a root that
// lies on a disk of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// startLimit is how long serve may take until it answers. A guest without KVM is
// slow.
const startLimit = 60 * time.Second

type options struct {
	thinsnap, disk, filesystem, verify string
	seed                               uint64
}

func main() {
	var o options
	flag.StringVar(&o.thinsnap, "thinsnap", "", "the thinsnap `program`")
	flag.StringVar(&o.disk, "disk", "", "the `device` that the root lies on; it is formatted if it is empty")
	flag.StringVar(&o.filesystem, "filesystem", "ext4", "the snapshots' file system")
	flag.StringVar(&o.verify, "verify", "", "hold the snapshotter against the model in this `file`")
	flag.Uint64Var(&o.seed, "seed", 1, "of what is done")
	flag.Parse()
	if err := run(namespaces.WithNamespace(context.Background(), "powercut"), o); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	dir, err := mountDisk(o.disk)
	if err != nil {
		return err
	}
	server, err := startServer(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if o.verify == "" {
		w := newWork(server.snapshotter, o.seed, json.NewEncoder(os.Stdout))
		return w.run(ctx)
	}
	if err := verify(ctx, server.snapshotter, o.verify); err != nil {
		return err
	}
	if err := server.stop(); err != nil {
		return err
	}
	return checkStore(ctx, filepath.Join(dir, "root", "metadata.db"))
}

// mountDisk mounts the disk, making a file system on one that has none.
func mountDisk(disk string) (string, error) {
	dir := "/run/powercut"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := syscall.Mount(disk, dir, "ext4", 0, ""); err == nil {
		return dir, nil
	}
	if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		return "", fmt.Errorf("format %s: %w: %s", disk, err, out)
	}
	return dir, syscall.Mount(disk, dir, "ext4", 0, "")
}

// server is a running `thinsnap serve`.
type server struct {
	snapshotter snapshots.Snapshotter
	cmd         *exec.Cmd
	conn        *grpc.ClientConn
}

func startServer(ctx context.Context, o options, dir string) (*server, error) {
	config := fmt.Sprintf(`
root = %q
[pool]
name = "powercut"
[pool.loop]
data_size = "3GiB"
metadata_size = "16MiB"
[filesystem]
type = %q
base_size = "320MiB"
`, filepath.Join(dir, "root"), o.filesystem)
	path := "/run/powercut.toml"
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	s := &server{cmd: exec.Command(o.thinsnap, "serve", "--config", path)}
	s.cmd.Stdout, s.cmd.Stderr = os.Stderr, os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	var err error
	s.conn, err = grpc.NewClient("unix:///run/thinsnap/thinsnap.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	s.snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(s.conn), "thinsnap")
	for deadline := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		err := s.snapshotter.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
		if err == nil {
			return s, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("the server does not answer: %w", err), s.stop())
		}
	}
}

// stop ends the server in order; a second call does nothing.
func (s *server) stop() error {
	if s.cmd.ProcessState != nil {
		return nil
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return errors.Join(s.cmd.Wait(), s.conn.Close())
}
