package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	snapshotters "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// startLimit is how long a server may take until it answers. A guest without KVM
// is slow, and LVM more so.
const startLimit = 3 * time.Minute

const thinsnapSocket = "/run/thinsnap/thinsnap.sock"

// mountDisk mounts a disk, making a file system on one that has none. In the last boot the kind of work before has mounted it.
func mountDisk(disk, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount(disk, dir, "ext4", 0, ""); err == nil || errors.Is(err, syscall.EBUSY) {
		return nil
	}
	if err := formatDisk(disk); err != nil {
		return err
	}
	return syscall.Mount(disk, dir, "ext4", 0, "")
}

// formatDisk writes no more than it must on a disk that reads as zeroes.
func formatDisk(disk string) error {
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1", disk).CombinedOutput(); err != nil {
		return fmt.Errorf("format %s: %w: %s", disk, err, out)
	}
	return nil
}

// server is a running `thinsnap serve`.
type server struct {
	snapshotter snapshotters.Snapshotter
	config      string // its path
	cmd         *exec.Cmd
	ended       chan struct{} // closed when it has
	err         error         // how it ended
	conn        *grpc.ClientConn
}

// poolConfig is the part of the configuration that says what the pool is made of: files below the root, or a disk.
func poolConfig(disk string) string {
	if disk == "" {
		return `
[pool.loop]
data_size = "3GiB"
metadata_size = "16MiB"
`
	}
	return fmt.Sprintf(`
mode = "direct-lvm"
[pool.direct_lvm]
device = %q
`, disk)
}

// startServer starts thinsnap with its root below dir, on a pool of that name on a disk, if one is given.
func startServer(ctx context.Context, o options, pool, disk, dir string) (*server, error) {
	s := &server{config: filepath.Join("/run", pool+".toml"), ended: make(chan struct{})}
	config := fmt.Sprintf(`
root = %q
[pool]
name = %q%s
[filesystem]
type = %q
base_size = "320MiB"
`, filepath.Join(dir, "root"), pool, poolConfig(disk), o.filesystem)
	if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(o.thinsnap, "serve", "--config", s.config)
	s.cmd.Stdout, s.cmd.Stderr = os.Stderr, os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	var err error
	if s.conn, s.snapshotter, err = dial(thinsnapSocket); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	err = answering(ctx, s.snapshotter, s.ended)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("thinsnap: %w", err), s.stop())
	}
	return s, nil
}

// dial returns the snapshotter thinsnap behind a socket, its own or containerd's.
func dial(socket string) (*grpc.ClientConn, snapshotters.Snapshotter, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return conn, proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thinsnap"), nil
}

// answering waits until a snapshotter answers.
func answering(ctx context.Context, sn snapshotters.Snapshotter, ended <-chan struct{}) error {
	for deadline := time.Now().Add(startLimit); ; {
		err := sn.Walk(ctx, func(context.Context, snapshotters.Info) error { return nil })
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it does not answer: %w", err)
		}
		select {
		case <-ended:
			return errors.New("it ended before it could be used")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the server in order; a second call does nothing but return the same.
func (s *server) stop() error {
	select {
	case <-s.ended:
	default:
		_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
		<-s.ended
	}
	if s.conn != nil {
		_ = s.conn.Close() // the second time it says that it is closed
	}
	return s.err
}

// kill ends a server that has nothing more to say.
func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
}

// check holds store, kernel and pool against each other, whether the server runs
// or has ended.
func (s *server) check(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, s.cmd.Path, "check", "--config", s.config).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("thinsnap check: %w: %s", err, out)
	}
	return err
}

// mountReplayed mounts a disk that must have a file system.
func mountReplayed(disk, dir string) error {
	if err := syscall.Mount(disk, dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount the replayed disk: %w", err)
	}
	return nil
}
