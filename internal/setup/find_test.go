package setup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// machine creates the root directory of a machine with the given files.
func machine(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "proc", "self"), 0o755))
	for name, text := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return host{root}
}

// runs adds a process to a machine.
func (h host) runs(t *testing.T, pid int, unit string, args ...string) string {
	t.Helper()
	dir := h.path(fmt.Sprintf("/proc/%d", pid))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for name, text := range map[string]string{
		"cmdline": strings.Join(args, "\x00") + "\x00",
		"status":  "Name:\tcontainerd\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n",
		"cgroup":  "0::/system.slice/" + unit + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	exe := args[0]
	if !filepath.IsAbs(exe) {
		exe = "/usr/bin/" + exe
	}
	require.NoError(t, os.Symlink(exe, filepath.Join(dir, "exe")))
	require.NoError(t, os.Symlink("/srv", filepath.Join(dir, "cwd")))
	require.NoError(t, os.Symlink(h.root, filepath.Join(dir, "root")))
	return dir
}

func found(t *testing.T, h host) []Containerd {
	t.Helper()
	all, err := h.find()
	require.NoError(t, err)
	return all
}

const debianUnit = `[Unit]
Description=containerd container runtime

[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/bin/containerd
`

func TestFindStopped(t *testing.T) {
	require.Empty(t, found(t, machine(t, nil)))
	require.Equal(t, []Containerd{{
		Kind: System, Executable: "/usr/bin/containerd", Config: DefaultConfig, Address: DefaultAddress, Source: "the defaults",
	}}, found(t, machine(t, map[string]string{"usr/bin/containerd": ""})))

	unit := map[string]string{"usr/lib/systemd/system/containerd.service": debianUnit}
	want := Containerd{
		Kind: System, Executable: "/usr/bin/containerd", Config: DefaultConfig, Address: DefaultAddress, Unit: systemUnit,
		Source: "/usr/lib/systemd/system/containerd.service",
	}
	require.Equal(t, []Containerd{want}, found(t, machine(t, unit)))

	unit["etc/containerd/config.toml"] = "[grpc]\naddress = \"/run/c.sock\"\n"
	want.Address = "/run/c.sock"
	require.Equal(t, []Containerd{want}, found(t, machine(t, unit)))

	unit["etc/systemd/system/containerd.service.d/10-options.conf"] = "[Service]\nExecStart=\n" +
		"ExecStart=-/opt/bin/containerd \\\n  --config='/opt/etc/c d.toml' -a \"/run/my.sock\"\n"
	unit["usr/lib/systemd/system/containerd.service.d/10-options.conf"] = "[Service]\nExecStart=/not/this\n"
	want.Executable, want.Config, want.Address = "/opt/bin/containerd", "/opt/etc/c d.toml", "/run/my.sock"
	want.Source = "/etc/systemd/system/containerd.service.d/10-options.conf"
	require.Equal(t, []Containerd{want}, found(t, machine(t, unit)))

	for _, args := range []string{"$OPTIONS", "--config ${DIR}/c.toml"} {
		unit = map[string]string{"lib/systemd/system/containerd.service": "[Service]\nExecStart=/usr/bin/containerd " + args + "\n"}
		require.Empty(t, found(t, machine(t, unit))[0].Config, args)
	}
}

func TestFindRunning(t *testing.T) {
	h := machine(t, map[string]string{
		"usr/lib/systemd/system/containerd.service": debianUnit,
		"srv/my.toml":               "version = 3\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/run/new.sock'\n",
		"var/lib/rancher/k3s/.keep": "",
	})
	h.runs(t, 300, "containerd.service", "/usr/local/bin/containerd", "--log-level", "debug", "-config", "my.toml")
	h.runs(t, 301, "k3s.service", "containerd", "-c", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
		"-a", "/run/k3s/containerd/containerd.sock", "--state", "/run/k3s/containerd", "--root", "/x")
	h.runs(t, 302, "docker.service", "containerd", "--config", "/var/run/docker/containerd/containerd.toml")
	h.runs(t, 303, "k3s.service", "/usr/local/bin/k3s", "server")
	h.runs(t, 304, "x.service", "containerd-shim-runc-v2", "-address", "/run/containerd/containerd.sock")
	rootless := h.runs(t, 305, "user@1000.service", "containerd")
	require.NoError(t, os.WriteFile(filepath.Join(rootless, "status"), []byte("Uid:\t1000\t1000\t1000\t1000\n"), 0o600))
	contained := h.runs(t, 306, "x.service", "containerd")
	require.NoError(t, os.Remove(filepath.Join(contained, "root")))
	require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(contained, "root")))
	h.runs(t, 308, "x.service", "/usr/bin/containerd", "--address", "/run/x.sock", "-l=info", "publish", "--topic", "x")
	h.runs(t, 309, "x.service", "/usr/bin/containerd", "--config", "/tmp/0.toml", "config", "dump")
	upgraded := h.runs(t, 307, "containerd.service", "/usr/bin/containerd")
	require.NoError(t, os.Remove(filepath.Join(upgraded, "exe")))
	require.NoError(t, os.Symlink("/usr/bin/containerd (deleted)", filepath.Join(upgraded, "exe")))

	all := found(t, h)
	require.Equal(t, []Containerd{
		{System, "/usr/local/bin/containerd", "/srv/my.toml", "/run/new.sock", 300, "containerd.service", "process 300"},
		{K3s, "/usr/bin/containerd", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml", k3sAddress, 301, "k3s.service",
			"process 301"},
		{Docker, "/usr/bin/containerd", "/var/run/docker/containerd/containerd.toml", DefaultAddress, 302, "docker.service",
			"process 302"},
		{System, "/usr/bin/containerd", DefaultConfig, DefaultAddress, 307, "containerd.service", "process 307"},
	}, all)

	one, err := Only(all, K3s)
	require.NoError(t, err)
	require.Equal(t, all[1], one)
	_, err = Only(all, System)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "/srv/my.toml (process 300), /etc/containerd/config.toml (process 307)")
	_, err = Only(all[:1], Docker)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func TestFindStoppedK3s(t *testing.T) {
	h := machine(t, map[string]string{
		"var/lib/rancher/k3s/.keep": "", "var/lib/rancher/rke2/.keep": "",
		"etc/systemd/system/k3s-agent.service": "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n",
	})
	require.Equal(t, []Containerd{
		{K3s, "/var/lib/rancher/k3s/data/current/bin/containerd", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
			k3sAddress, 0, "k3s-agent.service", "/var/lib/rancher/k3s"},
		{K3s, "/var/lib/rancher/rke2/bin/containerd", "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
			k3sAddress, 0, "", "/var/lib/rancher/rke2"},
	}, found(t, h))
}

func TestReleaseLines(t *testing.T) {
	for line, want := range map[string]Release{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n": {1, 6, "1.6.20~ds1"},
		"containerd github.com/containerd/containerd/v2 2.4.2+unknown \n":               {2, 4, "2.4.2+unknown"},
		"containerd github.com/k3s-io/containerd v1.7.23-k3s2 abc\n":                    {1, 7, "1.7.23-k3s2"},
		"containerd containerd.io v2.2.1 dea7da592f5d1d2b7755e3a161be07f43fad8f75\n":    {2, 2, "2.2.1"},
	} {
		got, err := parseRelease("containerd", line)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, line := range []string{"", "containerd", "containerd a b", "ls (GNU coreutils) 9.1\n"} {
		_, err := parseRelease("containerd", line)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, line)
	}
	require.True(t, Release{2, 0, ""}.AtLeast(1, 7))
	require.True(t, Release{1, 7, ""}.AtLeast(1, 7))
	require.False(t, Release{1, 6, ""}.AtLeast(1, 7))

	script := filepath.Join(t.TempDir(), "containerd")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho cannot >&2\nexit 3\n"), 0o700))
	_, err := Containerd{Executable: script}.Release(context.Background())
	require.ErrorContains(t, err, "containerd --version: exit status 3: cannot")
}
