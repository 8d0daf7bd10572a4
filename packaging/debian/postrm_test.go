package debian

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// removal is a root directory for the postrm script, with records of `thinsnap setup`.
type removal struct {
	*testing.T
	root string
}

func newRemoval(t *testing.T) removal {
	t.Helper()
	r := removal{t, t.TempDir()}
	for _, program := range []string{"deb-systemd-helper", "systemctl"} { // the real ones would act on the machine
		r.write("stubs/"+program, "#!/bin/sh\n")
		require.NoError(t, os.Chmod(r.at("stubs/"+program), 0o700))
	}
	return r
}

func (r removal) at(name string) string { return filepath.Join(r.root, name) }

func (r removal) write(name, text string) {
	r.Helper()
	require.NoError(r, os.MkdirAll(filepath.Dir(r.at(name)), 0o755))
	require.NoError(r, os.WriteFile(r.at(name), []byte(text), 0o600))
}

// setUp changes files as `thinsnap setup` does.
func (r removal) setUp(program string, files map[string]string) {
	r.Helper()
	path := r.at("etc/thinsnap/setup/" + program + ".json")
	record, err := journal.Open(path)
	require.NoError(r, err)
	for name, text := range files {
		f := journal.File{Path: r.at(name), After: []byte(text)}
		if before, err := os.ReadFile(f.Path); err == nil {
			f.Before = before
		}
		require.NoError(r, record.Apply([]journal.File{f}, func() error { return nil }))
	}
	text := strings.ReplaceAll(string(read(r.T, path)), r.root, "")
	require.NoError(r, os.WriteFile(path, []byte(text), 0o600))
}

func (r removal) run(action string) string {
	r.Helper()
	cmd := exec.CommandContext(r.Context(), "sh", "postrm", action)
	cmd.Env = []string{"DPKG_ROOT=" + r.root, "PATH=" + r.at("stubs") + ":" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	require.NoError(r, err, "%s", out)
	return string(out)
}

// TestRemovalAfterSetup: a removal lists the remaining changes, and a purge removes only the files
// of the set-up.
func TestRemovalAfterSetup(t *testing.T) {
	r := newRemoval(t)
	r.write("etc/containerd/config.toml", "version = 2\n")
	r.setUp("containerd", map[string]string{
		"etc/containerd/conf.d/thinsnap.toml":                 "[proxy_plugins]\n",
		"etc/systemd/system/thinsnap.service.d/disk.conf":     "[Service]\n",
		"var/lib/rancher/k3s/agent/etc/containerd/own file.x": "x\n",
	})
	said := r.run("remove")
	require.Contains(t, said, "containerd is still set up for thinsnap")
	require.Contains(t, said, `run "thinsnap setup containerd --undo"`)
	require.FileExists(t, r.at("etc/containerd/conf.d/thinsnap.toml"))
	said = r.run("purge")
	require.Contains(t, said, " /etc/containerd/conf.d/thinsnap.toml")
	require.Contains(t, said, "systemctl restart containerd\n")
	require.NotContains(t, said, "by hand")
	for _, gone := range []string{"etc/containerd/conf.d", "etc/systemd", "var/lib/rancher", "etc/thinsnap"} {
		require.NoDirExists(t, r.at(gone))
	}
	require.Empty(t, r.run("remove")+r.run("purge"), "nothing is left")
}

// TestPurgeKeepsFilesOfOthers: changes in existing files stay, and so do edited files. Their record
// stays, too, so that a new installation can undo them.
func TestPurgeKeepsFilesOfOthers(t *testing.T) {
	r := newRemoval(t)
	r.write("etc/containerd/config.toml", "version = 2\n")
	r.setUp("containerd", map[string]string{
		"etc/containerd/config.toml":          "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
		"etc/containerd/conf.d/thinsnap.toml": "[proxy_plugins]\n",
	})
	r.write("etc/docker/daemon.json", "{}\n")
	r.setUp("docker", map[string]string{"etc/docker/daemon.json": "{\"storage-driver\": \"thinsnap\"}\n"})
	r.setUp("k3s", map[string]string{"k3s/config.toml.tmpl": "a\n"})
	r.write("k3s/config.toml.tmpl", "edited\n")
	r.write("etc/docker/daemon.json", "{}\n") // undone by hand
	said := r.run("purge")
	require.Contains(t, said, "removed /etc/containerd/conf.d/thinsnap.toml.")
	require.Contains(t, said, "and then /etc/thinsnap/setup/containerd.json: /etc/containerd/config.toml (from before: "+
		"/etc/containerd/config.toml.before-thinsnap)\n")
	require.Contains(t, said, "and then /etc/thinsnap/setup/k3s.json: /k3s/config.toml.tmpl (edited since)\n")
	require.NotContains(t, said, "docker")
	require.NoFileExists(t, r.at("etc/thinsnap/setup/docker.json"))
	require.NoFileExists(t, r.at("etc/docker/daemon.json.before-thinsnap"))
	require.NoFileExists(t, r.at("etc/containerd/conf.d/thinsnap.toml"))
	require.Equal(t, "edited\n", string(read(t, r.at("k3s/config.toml.tmpl"))))
	require.Contains(t, string(read(t, r.at("etc/containerd/config.toml"))), "imports")
}
