// Package systemd tests the package and the units on a Debian with systemd and udev, in a guest that boots it from a disk.
package systemd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// variable is set by make, after it has built the tests' files.
const variable = "THINSNAP_SYSTEMD_TESTS"

// limit bounds one command: some take a minute in an emulated guest on a busy machine.
const limit = 10 * time.Minute

// guest is a machine with one root disk, which is booted several times.
type guest struct {
	*vm.Machine
	config vm.Config
	cache  string
}

// newGuest boots a new Debian, with the blank disks /dev/disk/by-id/virtio-disk0 and so on.
func newGuest(t *testing.T, disks int) *guest {
	t.Helper()
	if os.Getenv(variable) != "1" {
		t.Skip("boots guests: make system-test")
	}
	dmtest.RequireInstalled(t, vm.Installed())
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	g := &guest{cache: cache, config: vm.Config{Root: filepath.Join(t.TempDir(), "root.img"), CPUs: 1, MemoryMiB: 2048}}
	out, err := exec.Command("cp", "--sparse=always", filepath.Join(cache, "systemd", "root.img"), g.config.Root).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for i := range disks {
		g.config.Disks = append(g.config.Disks, vm.Disk{Path: filepath.Join(t.TempDir(), fmt.Sprint(i)), Size: 10 << 30})
	}
	g.boot(t)
	t.Cleanup(func() {
		if t.Failed() {
			journal, _ := g.try("journalctl --boot --no-pager --priority=info | tail -n 100")
			t.Logf("journal:\n%s\nconsole:\n%s", journal, g.Console())
		}
		g.Kill()
	})
	return g
}

// boot boots the guest and returns when all units have started.
func (g *guest) boot(t *testing.T) {
	t.Helper()
	start := time.Now()
	var err error
	g.Machine, err = vm.Boot(t.Context(), g.config)
	require.NoError(t, err)
	state, _ := g.try("systemctl is-system-running --wait")
	require.Equal(t, "running", state, "%s", g.output("systemctl --failed --no-pager"))
	t.Logf("booted in %v", time.Since(start).Round(time.Second))
}

// reboot stops all units, and boots from the same disk.
func (g *guest) reboot(t *testing.T) {
	t.Helper()
	require.NoError(t, g.Stop(t.Context()))
	g.boot(t)
}

// cut boots from the same disk after a power cut.
func (g *guest) cut(t *testing.T) {
	t.Helper()
	g.Kill()
	g.boot(t)
}

// try runs a shell command as root, and returns its output.
func (g *guest) try(command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	err := g.Run(ctx, vm.Command{Args: []string{"bash", "-o", "pipefail", "-c", command}, Dir: "/root", Stdout: &out, Stderr: &out})
	return strings.TrimSpace(out.String()), err
}

// output is try, with an error appended to the output.
func (g *guest) output(command string) string {
	out, err := g.try(command)
	if err != nil {
		return fmt.Sprintf("%s\n%v", out, err)
	}
	return out
}

// run is try, and fails the test if the command fails.
func (g *guest) run(t *testing.T, command string) string {
	t.Helper()
	start := time.Now()
	out, err := g.try(command)
	require.NoError(t, err, "%s:\n%s", command, out)
	if took := time.Since(start); took > 2*time.Second {
		t.Logf("%v: %s", took.Round(time.Second), command)
	}
	return out
}

func (g *guest) write(t *testing.T, path, text string) {
	t.Helper()
	g.run(t, fmt.Sprintf("cat > %s <<'END'\n%s\nEND", path, text))
}

// eventually repeats a command until it succeeds.
func (g *guest) eventually(t *testing.T, command string) {
	t.Helper()
	require.Eventually(t, func() bool { _, err := g.try(command); return err == nil }, limit, 500*time.Millisecond, command)
}

// fromHost returns the path of a host's file in the guest.
func fromHost(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return "/run/host" + path
}

// registry is the guest's address of the registry with the tests' images.
const registry = "127.0.0.1:5000"

// serveImages runs a registry with the tests' images in the guest, which has no network.
func (g *guest) serveImages(t *testing.T) {
	t.Helper()
	storage := filepath.Join(g.cache, "image", "registry")
	_, err := os.Stat(storage)
	require.NoError(t, err, "make system-test builds it")
	g.run(t, fmt.Sprintf("systemd-run --unit=registry --setenv=REGISTRY_HTTP_ADDR=%s "+
		"--setenv=REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=%s %s serve %s", registry, fromHost(t, storage),
		fromHost(t, filepath.Join(g.cache, "debian/docker-registry/usr/bin/docker-registry")), fromHost(t, "../image/registry.yml")))
	host, port, err := net.SplitHostPort(registry)
	require.NoError(t, err)
	g.eventually(t, fmt.Sprintf("exec 3<>/dev/tcp/%s/%s", host, port))
}

// deb returns the path of the package that make has built.
func deb(t *testing.T) string {
	t.Helper()
	debs, err := filepath.Glob("../../.reports/deb/*.deb")
	require.NoError(t, err)
	require.Len(t, debs, 1, "make system-test builds it")
	return debs[0]
}
