package setup

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestFindDockerd(t *testing.T) {
	_, err := machine(t, nil).dockerd()
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	h := machine(t, map[string]string{"usr/lib/systemd/system/docker.service": "[Service]\n" +
		"ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS\n"})
	d, err := h.dockerd()
	require.NoError(t, err)
	require.Equal(t, Dockerd{
		Executable: "/usr/sbin/dockerd", Config: dockerdConfig, Containerd: DefaultAddress, Unit: dockerUnit,
		Source: "/usr/lib/systemd/system/docker.service",
	}, d)

	h.runs(t, 400, "docker.service", "/usr/bin/dockerd", "--config-file", "my.json", "-s", "overlay2",
		"--containerd", "unix:///run/x.sock")
	d, err = h.dockerd()
	require.NoError(t, err)
	require.Equal(t, Dockerd{"/usr/bin/dockerd", "/srv/my.json", "/run/x.sock", "overlay2", dockerUnit, "process 400"}, d)
	_, err = d.Plan(t.Context(), "thinsnap")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "--storage-driver=overlay2 on its command line (process 400)")
}

func TestDockersContainerd(t *testing.T) {
	system := Containerd{Kind: System, Address: DefaultAddress}
	other := Containerd{Kind: System, Address: "/run/x.sock"}
	managed := Containerd{Kind: Docker, Address: "/var/run/docker/containerd/containerd.sock", Source: "process 3"}
	for _, c := range []struct {
		told string
		all  []Containerd
		want Containerd
	}{
		{DefaultAddress, []Containerd{other, system}, system},
		{"/run/x.sock", []Containerd{system, other}, other},
		{"", []Containerd{system}, system},
		{DefaultAddress, []Containerd{managed, system}, system},
	} {
		got, err := Dockerd{Containerd: c.told}.Uses(c.all)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	_, err := Dockerd{}.Uses([]Containerd{managed, system})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "its own containerd (process 3)")
	_, err = Dockerd{}.Uses(nil)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// TestDaemonJSON: two members are set, and the rest stays unchanged.
func TestDaemonJSON(t *testing.T) {
	const both = "\n  \"features\": {\"containerd-snapshotter\":true},\n  \"storage-driver\": \"thinsnap\""
	for text, want := range map[string]string{
		"":                                   "{" + both + "\n}\n",
		"{}":                                 "{" + both + "}",
		"{\n    \"live-restore\": true\n}\n": "{" + both + ",\n    \"live-restore\": true\n}\n",
		"{\"storage-driver\": \"overlay2\" , \"features\":{ \"cdi\": true}}": "{\"storage-driver\": \"thinsnap\" , \"features\":{\n" +
			"    \"containerd-snapshotter\": true, \"cdi\": true}}",
		"{\n  \"features\": {\n    \"containerd-snapshotter\": false\n  }\n}\n": "{\n  \"storage-driver\": \"thinsnap\",\n" +
			"  \"features\": {\n    \"containerd-snapshotter\": true\n  }\n}\n",
	} {
		got, err := withStore([]byte(text), "thinsnap")
		require.NoError(t, err, text)
		require.Equal(t, want, string(got))
		again, err := withStore(got, "thinsnap")
		require.NoError(t, err)
		require.Equal(t, string(got), string(again))
		require.True(t, json.Valid(got))
	}
	for text, class := range map[string]error{
		"[]": errdefs.ErrInvalidArgument, "{": errdefs.ErrInvalidArgument, "null": errdefs.ErrInvalidArgument,
		"{\"features\": 1}": errdefs.ErrInvalidArgument,
		"{\"features\": {}, \"features\": {\"cdi\": true}, \"storage-driver\": \"a\", \"storage-driver\": \"b\"}": errdefs.ErrNotImplemented,
	} {
		_, err := withStore([]byte(text), "thinsnap")
		require.ErrorIs(t, err, class, text)
	}
}

// TestDockerdChecks: dockerd validates the planned file.
func TestDockerdChecks(t *testing.T) {
	dir := t.TempDir()
	d := Dockerd{Executable: filepath.Join(dir, "dockerd"), Config: filepath.Join(dir, "daemon.json")}
	program := func(version, refuses string) {
		require.NoError(t, os.WriteFile(d.Executable, []byte("#!/bin/sh\ncase $1 in\n--version) echo 'Docker version "+version+
			", build 1' ;;\n*) "+refuses+" ;;\nesac\n"), 0o700))
	}
	program("28.5.2+dfsg1", "true")
	f, err := d.Plan(t.Context(), "thinsnap")
	require.NoError(t, err)
	require.Nil(t, f.Before)
	require.Contains(t, string(f.After), "thinsnap")
	program("28.5.2+dfsg1", "echo unknown key >&2; exit 1")
	_, err = d.Plan(t.Context(), "thinsnap")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "unknown key")
	program("20.10.24", "true")
	_, err = d.Plan(t.Context(), "thinsnap")
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.NoError(t, os.WriteFile(d.Config, f.After, 0o600))
	again, err := d.Plan(t.Context(), "thinsnap")
	require.NoError(t, err)
	require.True(t, again.Unchanged())
}
