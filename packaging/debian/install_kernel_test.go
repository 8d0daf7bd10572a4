package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestInstalledPackage installs the package with dpkg on a copy of the machine's root, runs the
// daemon with the installed configuration, and removes the package in each way.
func TestInstalledPackage(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	debs, err := filepath.Glob("../../.reports/deb/*.deb")
	require.NoError(t, err)
	require.Len(t, debs, 1, "make kernel-test builds it")
	root := overlay(t)
	require.NoError(t, os.RemoveAll(filepath.Join(root, "var/lib/thinsnap")))
	require.NoError(t, os.WriteFile(filepath.Join(root, "thinsnap.deb"), read(t, debs[0]), 0o600))
	in := func(args ...string) string {
		t.Helper()
		return command(t, "chroot", append([]string{root}, args...)...)
	}
	exists := func(path string) bool {
		_, err := os.Lstat(filepath.Join(root, path))
		return err == nil
	}
	const wanted = "/etc/systemd/system/multi-user.target.wants/thinsnap.service"

	in("dpkg", "--install", "/thinsnap.deb")
	require.False(t, exists(wanted), "the daemon is not enabled")
	require.False(t, exists("/var/lib/thinsnap"))
	require.Contains(t, in("thinsnap", "config", "check"), "/etc/thinsnap/config.toml: OK")
	in("systemctl", "enable", "thinsnap.service")
	require.True(t, exists(wanted))

	// A loop device does not work on a file of the overlay.
	data := filepath.Join(root, "var/lib/thinsnap")
	require.NoError(t, os.Mkdir(data, 0o700))
	require.NoError(t, unix.Mount("tmpfs", data, "tmpfs", 0, "mode=700,size=2g"))
	t.Cleanup(func() { _ = unix.Unmount(data, unix.MNT_DETACH) }) // usually unmounted by now
	stop := serve(t, root)
	require.Contains(t, in("thinsnap", "info"), "Pool State: rw\n")
	require.Contains(t, in("thinsnap", "info"), "data up to 100GiB\n")
	require.Contains(t, in("thinsnap", "check"), "no problems found")
	stop()

	t.Log("an upgrade keeps the administrator's changes")
	file := filepath.Join(root, "/etc/thinsnap/config.toml")
	changed := strings.Replace(string(read(t, file)), `#level = "info"`, `level = "debug"`, 1)
	require.NoError(t, os.WriteFile(file, []byte(changed), 0o600))
	in("dpkg", "--install", "/thinsnap.deb")
	require.True(t, exists(wanted))
	require.Equal(t, changed, string(read(t, file)))

	t.Log("a removal keeps them, too, and the pool")
	in("dpkg", "--remove", "thinsnap")
	require.False(t, exists("/usr/bin/thinsnap"))
	require.Equal(t, changed, string(read(t, file)))
	in("dpkg", "--install", "/thinsnap.deb")
	require.True(t, exists(wanted))

	require.Contains(t, in("dpkg", "--purge", "thinsnap"), "thinsnap: /var/lib/thinsnap is kept, with the pool")
	require.False(t, exists("/etc/thinsnap"))
	require.False(t, exists(wanted))
	require.True(t, exists("/var/lib/thinsnap/pool/data"))

	t.Log("a new installation finds the pool")
	in("dpkg", "--install", "/thinsnap.deb")
	serve(t, root)()
	in("thinsnap", "pool", "destroy", "--yes")
	left, err := os.ReadDir(data)
	require.NoError(t, err)
	for _, entry := range left {
		require.Contains(t, []string{"mounts", "pool"}, entry.Name())
		require.NoError(t, os.Remove(filepath.Join(data, entry.Name())), "empty")
	}
	require.NoError(t, unix.Unmount(data, 0))
	require.NotContains(t, in("dpkg", "--purge", "thinsnap"), "is kept")
	require.False(t, exists("/var/lib/thinsnap"))
}

// overlay mounts a copy of the machine's root, with its own /run. Writes to it are lost at the end
// of the test.
func overlay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	attach := func(source, target, fstype string, flags uintptr, options string) {
		require.NoError(t, os.MkdirAll(target, 0o755))
		require.NoError(t, unix.Mount(source, target, fstype, flags, options), target)
		t.Cleanup(func() { require.NoError(t, unix.Unmount(target, 0), target) })
	}
	attach("tmpfs", at("rw"), "tmpfs", 0, "size=4g,mode=755")
	require.NoError(t, os.MkdirAll(at("rw/upper"), 0o755))
	require.NoError(t, os.MkdirAll(at("rw/work"), 0o755))
	attach("overlay", at("root"), "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", at("rw/upper"), at("rw/work")))
	attach("tmpfs", at("root/run"), "tmpfs", 0, "mode=755")
	attach("tmpfs", at("root/tmp"), "tmpfs", 0, "mode=1777")
	attach("proc", at("root/proc"), "proc", 0, "")
	attach("sysfs", at("root/sys"), "sysfs", 0, "")
	attach("/dev", at("root/dev"), "", unix.MS_BIND, "")
	// dpkg reads the state of all packages, and manual pages are indexed again. In a slow guest,
	// each takes a minute.
	attach("tmpfs", at("root/var/lib/dpkg"), "tmpfs", 0, "mode=755")
	require.NoError(t, os.MkdirAll(at("root/var/lib/dpkg/info"), 0o755))
	require.NoError(t, os.MkdirAll(at("root/var/lib/dpkg/updates"), 0o755))
	dependencies := command(t, "dpkg-query", "--status", "e2fsprogs", "init-system-helpers", "kmod")
	require.NoError(t, os.WriteFile(at("root/var/lib/dpkg/status"), []byte(dependencies), 0o644))
	return at("root")
}

// serve starts the installed daemon as the installed unit does, and returns a function that stops
// it.
func serve(t *testing.T, root string) (stop func()) {
	t.Helper()
	var start []string
	for line := range strings.Lines(string(read(t, filepath.Join(root, "usr/lib/systemd/system/thinsnap.service")))) {
		if program, ok := strings.CutPrefix(line, "ExecStart="); ok {
			start = strings.Fields(program)
		}
	}
	require.NotEmpty(t, start)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	var log strings.Builder
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, start...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	stopped := false
	stop = func() {
		defer cancel()
		if !stopped {
			stopped = true
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait(), "%s", &log)
		}
	}
	t.Cleanup(stop)
	require.Eventually(t, func() bool {
		return exec.CommandContext(ctx, "chroot", root, "thinsnap", "info").Run() == nil
	}, 2*time.Minute, 100*time.Millisecond)
	return stop
}
