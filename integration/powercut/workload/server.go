package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	snapshotters "github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/integration/harness"
	checks "github.com/thinsnap/thinsnap/internal/check"
)

// mountDisk mounts a disk, and formats it first if it has no file system. In the last boot the disk may already be
// mounted.
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

// formatDisk formats a disk that reads as zeroes, with a minimum of writes.
func formatDisk(disk string) error {
	out, err := exec.Command("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1", disk).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format %s: %w: %s", disk, err, out)
	}
	return nil
}

// server is a running `thinsnap serve`.
type server struct {
	*harness.Thinsnap
	snapshotter snapshotters.Snapshotter
	conn        *grpc.ClientConn
}

// startServer starts thinsnap with its root below dir, on a pool with this name: on a disk, if one is given, else in
// files.
func startServer(o options, pool, disk, dir string) (*server, error) {
	daemon, err := harness.NewThinsnap(harness.Options{
		PoolName: pool, Dir: "/run/thinsnap-" + pool, Root: filepath.Join(dir, "root"), Sockets: "/run/thinsnap",
		Filesystem: o.filesystem, BaseSize: "320MiB", Device: disk, DataSize: "3GiB", MetadataSize: "16MiB",
		LogLevel: "info", Program: o.thinsnap, Output: os.Stderr,
	})
	if err != nil {
		return nil, err
	}
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	conn, sn, err := daemon.Dial()
	return &server{daemon, sn, conn}, err
}

func (s *server) stop() error { return errors.Join(s.conn.Close(), s.Stop()) }

// check compares the store, the kernel and the pool. The server may be running or not.
//
// It accepts blocks without a volume: the kernel allocates a block before a write, and maps it when the write ends. If
// it commits in between, a power cut leaves the block allocated.
func (s *server) check() error {
	out, err := s.TryRun(nil, "check", "--json")
	if err == nil {
		return nil
	}
	var report checks.Report
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
		return errors.Join(err, jsonErr)
	}
	for _, f := range report.Findings {
		if f.Kind != checks.KindBlocks {
			return fmt.Errorf("%w: %s: %s", err, f.Subject, f.Text)
		}
		fmt.Fprintln(os.Stderr, f.Text)
	}
	return nil
}

// mountReplayed mounts a disk that must have a file system.
func mountReplayed(disk, dir string) error {
	if err := syscall.Mount(disk, dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount the replayed disk: %w", err)
	}
	return nil
}
