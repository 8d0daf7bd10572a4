// Package rpm tests the RPM package that packaging/build.sh builds.
package rpm

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func TestPackage(t *testing.T) {
	_, err := exec.LookPath("rpm")
	dmtest.RequireInstalled(t, err)
	file := build(t, t.TempDir(), "amd64")
	require.Regexp(t, `/thinsnap-[0-9][^-]*-1\.x86_64\.rpm$`, file)

	t.Run("the same twice", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "again")
		require.NoError(t, os.Mkdir(dir, 0o700))
		again := build(t, dir, "amd64")
		require.Equal(t, read(t, file), read(t, again))
	})
	t.Run("files", func(t *testing.T) {
		modes := make(map[string]string)
		for line := range strings.Lines(query(t, file, "[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]")) {
			mode, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			owner, path, _ := strings.Cut(rest, " ")
			require.Equal(t, "root:root", owner)
			modes[path] = mode
		}
		for _, name := range []string{
			"/etc/thinsnap/config.toml", "/usr/lib/systemd/system/thinsnap.service", "/usr/lib/systemd/system/thinsnap.socket",
			"/usr/lib/systemd/system/thinsnap-trim.service", "/usr/lib/systemd/system/thinsnap-trim.timer",
			"/usr/share/bash-completion/completions/thinsnap", "/usr/share/fish/vendor_completions.d/thinsnap.fish",
			"/usr/share/zsh/site-functions/_thinsnap", "/usr/share/man/man1/thinsnap.1.gz",
			"/usr/share/man/man5/thinsnap-config.toml.5.gz", "/usr/share/licenses/thinsnap/LICENSE",
			"/usr/share/doc/thinsnap/README.md", "/usr/share/doc/thinsnap/linked-modules.gz",
			"/usr/share/doc/thinsnap/examples/deploy/kubernetes/overlays/k3s/serve/kustomization.yaml",
			"/usr/share/doc/thinsnap/examples/prometheus/alerts.yml", "/usr/share/doc/thinsnap/examples/grafana/thinsnap.json",
		} {
			require.Equal(t, "-rw-r--r--", modes[name], name)
		}
		require.Equal(t, "-rwxr-xr-x", modes["/usr/bin/thinsnap"])
		for path := range maps.Keys(modes) {
			require.NotContains(t, path, "lintian")
			require.NotContains(t, path, "vendor-completions")
		}
		require.Equal(t, "/etc/thinsnap/config.toml\n", command(t, "rpm", "-qp", "--configfiles", file))
		documents := command(t, "rpm", "-qp", "--docfiles", file)
		require.Contains(t, documents, "/usr/share/doc/thinsnap/examples/prometheus/alerts.yml\n")
		require.Contains(t, documents, "/usr/share/man/man1/thinsnap.1.gz\n")
		require.Contains(t, query(t, file, "[%{FILEFLAGS:fflags} %{FILENAMES}\n]"), "cn /etc/thinsnap/config.toml\n", "noreplace")
	})
	t.Run("dependencies", func(t *testing.T) {
		// The package names of Fedora and RHEL.
		require.Subset(t, names(t, file, "--requires"), []string{"device-mapper", "e2fsprogs", "kmod", "systemd", "util-linux"})
		require.Equal(t, []string{"device-mapper-persistent-data", "lvm2"}, names(t, file, "--recommends"))
		require.Equal(t, []string{"bash-completion", "containerd", "xfsprogs"}, names(t, file, "--suggests"))
	})
	t.Run("description", func(t *testing.T) {
		require.Equal(t, "Apache-2.0 x86_64 linux localhost", query(t, file, "%{LICENSE} %{ARCH} %{OS} %{BUILDHOST}"))
		require.NotContains(t, query(t, file, "%{DESCRIPTION}"), "\n.\n", "that is Debian's form of an empty line")
	})
	t.Run("installed", func(t *testing.T) { testInstalled(t, file) })
}

// TestPackageOfArm: the package for arm64 has an arm64 program.
func TestPackageOfArm(t *testing.T) {
	_, err := exec.LookPath("rpm")
	dmtest.RequireInstalled(t, err)
	if os.Getenv("THINSNAP_THOROUGH") == "" {
		t.Skip("make test-all builds for arm64")
	}
	file := build(t, t.TempDir(), "arm64")
	require.Regexp(t, `/thinsnap-[0-9][^-]*-1\.aarch64\.rpm$`, file)
	require.Equal(t, "aarch64", query(t, file, "%{ARCH}"))
	root := emptyRoot(t)
	command(t, "rpm", "--root", root, "--install", "--nodeps", "--noscripts", "--ignorearch", file)
	require.Contains(t, command(t, "go", "version", "-m", filepath.Join(root, "usr/bin/thinsnap")), "GOARCH=arm64")
}

// testInstalled installs, upgrades and removes the package in a root with only a shell and a fake
// systemd helper, which records its calls.
func testInstalled(t *testing.T, file string) {
	if os.Geteuid() != 0 {
		t.Skip("rpm --root needs root")
	}
	root := emptyRoot(t)
	busybox, err := exec.LookPath("busybox")
	dmtest.RequireInstalled(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(root, "usr/lib/systemd"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "bin"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin/sh"), read(t, busybox), 0o755))
	const helper = "#!/bin/sh\necho \"$*\" >>/calls\n"
	require.NoError(t, os.WriteFile(filepath.Join(root, "usr/lib/systemd/systemd-update-helper"), []byte(helper), 0o755))
	// rpm runs its command in the root, and returns the calls of the helper.
	rpm := func(args ...string) string {
		t.Helper()
		calls := filepath.Join(root, "calls")
		require.NoError(t, os.WriteFile(calls, nil, 0o600))
		command(t, "rpm", append([]string{"--root", root, "--nodeps"}, args...)...)
		return string(read(t, calls))
	}
	require.Equal(t, "install-system-units thinsnap.service thinsnap.socket thinsnap-trim.timer\n", rpm("--install", file))
	program := filepath.Join(root, "usr/bin/thinsnap")
	require.Contains(t, command(t, program, "version"), "thinsnap "+query(t, file, "%{VERSION}")+"\n")
	config := filepath.Join(root, "etc/thinsnap/config.toml")
	require.Contains(t, command(t, program, "--config", config, "config", "check"), ": OK")
	changed := append(read(t, config), "# mine\n"...)
	require.NoError(t, os.WriteFile(config, changed, 0o644))

	require.Equal(t, "mark-restart-system-units thinsnap.service\n", rpm("--upgrade", "--force", file))
	require.Equal(t, changed, read(t, config))

	record := filepath.Join(root, "etc/thinsnap/setup/containerd.json")
	require.NoError(t, os.Mkdir(filepath.Dir(record), 0o755))
	require.NoError(t, os.WriteFile(record, nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(root, "calls"), nil, 0o600))
	said, err := exec.CommandContext(t.Context(), "rpm", "--root", root, "--nodeps", "--erase", "thinsnap").CombinedOutput()
	require.NoError(t, err, "%s", said)
	require.Contains(t, string(said), "thinsnap: containerd is still set up for thinsnap")
	require.FileExists(t, record)
	require.Equal(t, "remove-system-units thinsnap.service thinsnap.socket thinsnap-trim.timer\n",
		string(read(t, filepath.Join(root, "calls"))))
	require.NoFileExists(t, program)
	require.Equal(t, changed, read(t, config+".rpmsave"), "a changed configuration is kept")
}

func emptyRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	command(t, "rpm", "--root", root, "--initdb")
	return root
}

// build builds the package, and returns its path.
func build(t *testing.T, dir, arch string) string {
	t.Helper()
	t.Setenv("GOARCH", arch)
	return strings.TrimSpace(command(t, "../build.sh", dir, "rpm"))
}

// query returns a property of a package file, in rpm's query format.
func query(t *testing.T, file, form string) string {
	t.Helper()
	return command(t, "rpm", "-qp", "--queryformat", form, file)
}

// names returns the package names in a list of rpm, without rpm's own features.
func names(t *testing.T, file, list string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(command(t, "rpm", "-qp", list, file)) {
		if name := strings.Fields(line)[0]; !strings.HasPrefix(name, "rpmlib(") && !strings.HasPrefix(name, "config(") {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(t, cmd.Run(), "%s: %s%s", cmd, &out, &errOut)
	return out.String()
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	return content
}
