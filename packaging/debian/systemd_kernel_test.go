package debian

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/metadata"
)

// systemd is a running systemd with its own root directory and PID namespace.
type systemd struct {
	root string
	pid  int
}

// bootSystemd boots systemd on a copy of the machine's root, without units that affect the machine.
func bootSystemd(t *testing.T) systemd {
	t.Helper()
	root := overlay(t)
	for _, unit := range []string{
		"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
		"systemd-sysctl.service", "systemd-tmpfiles-setup-dev.service", "lvm2-monitor.service", "blk-availability.service",
		"dm-event.socket", "lvm2-lvmpolld.socket", "timers.target",
	} {
		require.NoError(t, os.Symlink(os.DevNull, filepath.Join(root, "etc/systemd/system", unit)))
	}
	require.NoError(t, os.RemoveAll(filepath.Join(root, "usr/sbin/policy-rc.d"))) // it would keep packages from starting services
	group := "/sys/fs/cgroup/" + t.Name()
	require.NoError(t, os.Mkdir(group, 0o755))
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return removeGroup(group) == nil }, time.Minute, 10*time.Millisecond)
	})
	fd, err := os.Open(group)
	require.NoError(t, err)
	defer fd.Close()
	cmd := exec.Command("sh", "-ec", `mount --make-rprivate /; mount -t proc none "$1/proc"; mount -t cgroup2 none "$1/sys/fs/cgroup"
		exec env -i container=thinsnap-test PATH="$PATH" chroot "$1" /lib/systemd/systemd --unit=basic.target --log-target=console`, "sh", root)
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(fd.Fd()), Pdeathsig: unix.SIGKILL,
	}
	require.NoError(t, cmd.Start())
	s := systemd{root, cmd.Process.Pid}
	t.Cleanup(func() {
		if t.Failed() {
			journal, _ := s.command("journalctl", "--no-pager", "--unit=thinsnap.service", "--unit=thinsnap.socket").CombinedOutput()
			t.Logf("%s", journal)
		}
		require.NoError(t, cmd.Process.Kill()) // and all processes in its namespace
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s", &console)
		}
	})
	require.Eventually(t, func() bool {
		state, _ := s.command("systemctl", "is-active", "basic.target").Output()
		return strings.TrimSpace(string(state)) == "active"
	}, 5*time.Minute, 100*time.Millisecond)
	return s
}

// removeGroup removes a cgroup and its children.
func removeGroup(group string) error {
	below, err := os.ReadDir(group)
	if err != nil {
		return err
	}
	for _, entry := range below {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(group)
}

func (s systemd) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", fmt.Sprint(s.pid), "--all", "--root", "--wd"}, args...)...)
}

func (s systemd) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.command(args...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// show returns a property of thinsnap's service.
func (s systemd) show(t *testing.T, property string) string {
	t.Helper()
	return s.run(t, "systemctl", "show", "--property="+property, "--value", "thinsnap.service")
}

// active returns the states of the service and of the socket.
func (s systemd) active() string {
	out, _ := s.command("systemctl", "is-active", "thinsnap.service", "thinsnap.socket").Output()
	states := append(strings.Fields(string(out)), "", "")
	return fmt.Sprintf("service %s, socket %s", states[0], states[1])
}

func (s systemd) socket() string { return filepath.Join(s.root, "run/thinsnap/thinsnap.sock") }

// client returns a client that waits a minute for a connection. containerd waits one second, which
// may be too short in a slow guest.
func (s systemd) client(t *testing.T) (*grpc.ClientConn, func() error) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+s.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Minute}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn, func() error {
		_, err := snapshotsapi.NewSnapshotsClient(conn).Stat(t.Context(), &snapshotsapi.StatSnapshotRequest{
			Snapshotter: "thinsnap", Key: "box",
		})
		return err
	}
}

// TestUnderSystemd runs the installed units. No call fails while thinsnap restarts, for any reason.
// A call starts thinsnap, unless both units are stopped.
func TestUnderSystemd(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	debs, err := filepath.Glob("../../.reports/deb/*.deb")
	require.NoError(t, err)
	require.Len(t, debs, 1, "make kernel-test builds it")
	s := bootSystemd(t)
	require.NoError(t, os.WriteFile(filepath.Join(s.root, "thinsnap.deb"), read(t, debs[0]), 0o600))
	data := filepath.Join(s.root, "var/lib/thinsnap")
	require.NoError(t, os.RemoveAll(data))
	s.run(t, "sh", "-c", "mkdir -m 700 /var/lib/thinsnap; mount -t tmpfs -o mode=700,size=2g tmpfs /var/lib/thinsnap")
	s.run(t, "dpkg", "--install", "/thinsnap.deb")
	require.Equal(t, "service inactive, socket inactive", s.active())
	s.run(t, "systemctl", "enable", "--now", "thinsnap")
	require.Equal(t, "enabled", s.run(t, "systemctl", "is-enabled", "thinsnap.socket"))
	require.Equal(t, "service active, socket active", s.active())
	require.Equal(t, "the pool is open", s.show(t, "StatusText"))
	conn, call := s.client(t)
	_, err = snapshotsapi.NewSnapshotsClient(conn).Prepare(t.Context(), &snapshotsapi.PrepareSnapshotRequest{
		Snapshotter: "thinsnap", Key: "box",
	})
	require.NoError(t, err)

	// whole makes calls until the command, which restarts thinsnap, has ended. No call may fail.
	whole := func(args ...string) {
		t.Helper()
		before := s.show(t, "MainPID")
		ended := make(chan error, 1)
		go func() { ended <- s.command(args...).Run() }()
		for over := false; !over; {
			select {
			case err := <-ended:
				require.NoError(t, err)
				over = true
			default:
			}
			require.NoError(t, call())
		}
		require.NotEqual(t, before, s.show(t, "MainPID"))
		require.Equal(t, "service active, socket active", s.active())
	}
	t.Log("a restart")
	whole("systemctl", "restart", "thinsnap")
	t.Log("a kill")
	s.run(t, "kill", "-9", s.show(t, "MainPID"))
	require.True(t, conn.WaitForStateChange(t.Context(), connectivity.Ready), "the call after the kill")
	require.NoError(t, call())
	require.Equal(t, "1", s.show(t, "NRestarts"))

	t.Log("an upgrade of a version without the socket")
	units := filepath.Join(s.root, "usr/lib/systemd/system")
	s.run(t, "systemctl", "stop", "thinsnap.socket", "thinsnap.service")
	require.NoError(t, os.Remove(filepath.Join(units, "thinsnap.socket")))
	s.run(t, "systemctl", "daemon-reload")
	s.run(t, "systemctl", "start", "thinsnap")
	require.NoError(t, call())
	s.run(t, "dpkg", "--install", "/thinsnap.deb")
	require.Equal(t, "service active, socket active", s.active())
	require.Eventually(t, func() bool { return call() == nil }, time.Minute, 10*time.Millisecond)
	whole("systemctl", "restart", "thinsnap")

	t.Log("an invalid configuration: the socket stays, and a call starts thinsnap when it is mended")
	file := filepath.Join(s.root, "etc/thinsnap/config.toml")
	good := read(t, file)
	require.NoError(t, os.WriteFile(file, append(bytes.Clone(good), "\nnonsense = 1\n"...), 0o600))
	require.Error(t, s.command("systemctl", "restart", "thinsnap").Run())
	require.Equal(t, "service failed, socket active", s.active())
	for range 3 { // a call must get an end, or systemd would start the service again until it gives up the socket
		waiting, err := net.Dial("unix", s.socket())
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, waiting)
		require.NoError(t, err, "closed by systemd")
		require.NoError(t, waiting.Close())
	}
	require.Equal(t, "78", s.show(t, "ExecMainStatus"))
	require.NoError(t, os.WriteFile(file, good, 0o600))
	require.Eventually(t, func() bool { return call() == nil }, time.Minute, 10*time.Millisecond)
	require.Equal(t, "service active, socket active", s.active())

	t.Log("a failure that lasts: systemd restarts it without limit, more often than by default")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	failing := fmt.Appendf(nil, "metrics_address = %q\n%s", taken.Addr(), good)
	require.NoError(t, os.WriteFile(file, failing, 0o600))
	require.Error(t, s.command("systemctl", "restart", "thinsnap").Run())
	require.Eventually(t, func() bool {
		restarts, err := strconv.Atoi(s.show(t, "NRestarts"))
		return err == nil && restarts > 5
	}, time.Minute, 100*time.Millisecond)
	require.NoError(t, taken.Close())
	require.Eventually(t, func() bool { return call() == nil }, time.Minute, 10*time.Millisecond)
	require.Equal(t, "service active, socket active", s.active())
	require.NoError(t, os.WriteFile(file, good, 0o600))
	whole("systemctl", "restart", "thinsnap")

	t.Log("a stopped daemon")
	s.run(t, "systemctl", "stop", "thinsnap.socket", "thinsnap.service")
	_, err = net.Dial("unix", s.socket())
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, "service inactive, socket inactive", s.active())

	t.Log("started while a command has the root: it waits")
	store, err := metadata.Open(filepath.Join("/proc", fmt.Sprint(s.pid), "root/var/lib/thinsnap/metadata.db"), metadata.Options{})
	require.NoError(t, err)
	s.run(t, "systemctl", "start", "thinsnap")
	require.Equal(t, "service active, socket active", s.active())
	require.Contains(t, s.show(t, "StatusText"), "the pool is not open: ")
	require.Contains(t, s.show(t, "StatusText"), metadata.ErrLocked.Error())
	require.NoError(t, store.Close())
	require.Eventually(t, func() bool { return s.show(t, "StatusText") == "the pool is open" }, 3*time.Minute, 100*time.Millisecond)
	require.Equal(t, "0", s.show(t, "NRestarts"))

	_, err = snapshotsapi.NewSnapshotsClient(conn).Remove(context.WithoutCancel(t.Context()), &snapshotsapi.RemoveSnapshotRequest{
		Snapshotter: "thinsnap", Key: "box",
	}, grpc.WaitForReady(true))
	require.NoError(t, err)
	s.run(t, "cp", "/usr/bin/thinsnap", "/thinsnap")
	s.run(t, "dpkg", "--purge", "thinsnap")
	require.Equal(t, "service inactive, socket inactive", s.active())
	require.Contains(t, s.run(t, "/thinsnap", "pool", "destroy", "--yes"), "destroyed pool thinsnap")
	s.run(t, "umount", "/var/lib/thinsnap")
}
