// Package debian tests the Debian package that packaging/build.sh builds.
package debian

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func TestPackage(t *testing.T) {
	t.Setenv("THINSNAP_DEB_COMPRESSION", "gzip") // xz is slow; TestRelease tests it
	deb := build(t, t.TempDir())
	require.Regexp(t, `/thinsnap_[0-9][^_-]*_amd64\.deb$`, deb)
	dir := t.TempDir()
	command(t, "dpkg-deb", "-x", deb, dir)

	t.Run("the same twice", func(t *testing.T) {
		// In a directory with another name, and with other modes.
		dir := filepath.Join(t.TempDir(), "again")
		require.NoError(t, os.Mkdir(dir, 0o700))
		older, other := filepath.Join(dir, "thinsnap_0~git20200101.abc_amd64.deb"), filepath.Join(dir, "thinsnap_1.0_arm64.deb")
		for _, file := range []string{older, other} {
			require.NoError(t, os.WriteFile(file, nil, 0o600))
		}
		again := build(t, dir)
		require.Equal(t, read(t, deb), read(t, again))
		require.NoFileExists(t, older, "bin/thinsnap_*_amd64.deb must match one file")
		require.FileExists(t, other)
	})
	t.Run("files", func(t *testing.T) {
		var files []string
		for line := range strings.Lines(command(t, "dpkg-deb", "-c", deb)) {
			fields := strings.Fields(line)
			require.Equal(t, "root/root", fields[1])
			if mode := fields[0]; mode[0] != 'd' {
				files = append(files, mode+" "+strings.TrimPrefix(fields[5], "."))
			}
		}
		require.ElementsMatch(t, append(documents(t),
			"-rw-r--r-- /etc/thinsnap/config.toml",
			"-rwxr-xr-x /usr/bin/thinsnap",
			"-rw-r--r-- /usr/lib/systemd/system/thinsnap-trim.service",
			"-rw-r--r-- /usr/lib/systemd/system/thinsnap-trim.timer",
			"-rw-r--r-- /usr/lib/systemd/system/thinsnap.service",
			"-rw-r--r-- /usr/lib/systemd/system/thinsnap.socket",
			"-rw-r--r-- /usr/share/bash-completion/completions/thinsnap",
			"-rw-r--r-- /usr/share/doc/thinsnap/changelog.gz",
			"-rw-r--r-- /usr/share/doc/thinsnap/copyright",
			"-rw-r--r-- /usr/share/doc/thinsnap/linked-modules.gz",
			"-rw-r--r-- /usr/share/fish/vendor_completions.d/thinsnap.fish",
			"-rw-r--r-- /usr/share/lintian/overrides/thinsnap",
			"-rw-r--r-- /usr/share/man/man1/thinsnap.1.gz",
			"-rw-r--r-- /usr/share/man/man5/thinsnap-config.toml.5.gz",
			"-rw-r--r-- /usr/share/zsh/vendor-completions/_thinsnap",
		), files)
	})
	t.Run("version", func(t *testing.T) {
		version := strings.TrimSpace(command(t, "dpkg-deb", "-f", deb, "Version"))
		require.Contains(t, command(t, filepath.Join(dir, "usr/bin/thinsnap"), "version"), "thinsnap "+version+"\n")
		if strings.HasPrefix(version, "0~") {
			require.Regexp(t, `^0~git[0-9]{14}\.`, version, "later commits of a day come after earlier ones")
		}
	})
	t.Run("configuration", func(t *testing.T) { testConfiguration(t, deb, filepath.Join(dir, "etc/thinsnap/config.toml")) })
	t.Run("unit", func(t *testing.T) { testUnit(t, dir) })
	t.Run("links", func(t *testing.T) { testLinks(t, filepath.Join(dir, "usr/share/doc/thinsnap")) })
	t.Run("licences", func(t *testing.T) { testLicences(t, dir) })
	t.Run("lintian", func(t *testing.T) {
		_, err := exec.LookPath("lintian")
		dmtest.RequireInstalled(t, err)
		out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", deb).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
}

// testConfiguration: the installed file has all defaults as comments, and only sets the version.
func testConfiguration(t *testing.T, deb, file string) {
	require.Equal(t, "/etc/thinsnap/config.toml\n", command(t, "dpkg-deb", "-I", deb, "conffiles"))
	text := string(read(t, file))
	cfg, err := config.Parse([]byte(text))
	require.NoError(t, err)
	require.Equal(t, config.Default(), cfg)
	var set []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "[") {
			set = append(set, line)
		}
	}
	require.Equal(t, []string{"version = 1"}, set)
	require.Equal(t, config.DefaultFile(), regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(text, "$1"))
}

// testUnit: the package has the program and the manual pages of the unit.
func testUnit(t *testing.T, dir string) {
	unit := string(read(t, filepath.Join(dir, "usr/lib/systemd/system/thinsnap.service")))
	require.Contains(t, unit, "\nExecStart=/usr/bin/thinsnap serve\n")
	require.Contains(t, unit, "\nDocumentation=man:thinsnap(1) https://")
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err) // a machine may have another init
	}
	require.Contains(t, string(read(t, filepath.Join(dir, "usr/lib/systemd/system/thinsnap.socket"))), "\nDocumentation=man:thinsnap(1) https://")
	file := filepath.Join(t.TempDir(), "thinsnap.service")
	unit = strings.Replace(unit, "/usr/bin/thinsnap", filepath.Join(dir, "usr/bin/thinsnap"), 1)
	require.NoError(t, os.WriteFile(file, []byte(unit), 0o600))
	require.Empty(t, command(t, "systemd-analyze", "verify", "--man=no", file))
}

// documents lists the repository's documents by their paths in the package.
func documents(t *testing.T) []string {
	t.Helper()
	var files []string
	add := func(name string) { files = append(files, "-rw-r--r-- /usr/share/doc/thinsnap/"+name) }
	add("README.md")
	add("CHANGELOG.md")
	require.NoError(t, filepath.WalkDir("../../docs", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel("../../docs", path)
		switch filepath.Dir(name) {
		case "man":
		case ".":
			if name != "support.json" { // the source of support.md
				add(name)
			}
		default:
			add("examples/" + name)
		}
		return err
	}))
	require.NoError(t, filepath.WalkDir("../../deploy", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			add("examples/" + strings.TrimPrefix(path, "../../"))
		}
		return err
	}))
	require.Contains(t, files, "-rw-r--r-- /usr/share/doc/thinsnap/examples/prometheus/alerts.yml")
	require.Contains(t, files, "-rw-r--r-- /usr/share/doc/thinsnap/examples/deploy/kubernetes/overlays/k3s/serve/kustomization.yaml")
	return files
}

// testLinks: each link of a document leads to a file of the package or to a website.
func testLinks(t *testing.T, dir string) {
	pages, err := filepath.Glob(filepath.Join(dir, "*.md"))
	require.NoError(t, err)
	require.Greater(t, len(pages), 10)
	link := regexp.MustCompile(`\]\(([^)#]+)`)
	for _, page := range pages {
		for _, found := range link.FindAllStringSubmatch(string(read(t, page)), -1) {
			if !strings.HasPrefix(found[1], "https://") {
				_, err := os.Stat(filepath.Join(dir, found[1]))
				require.NoError(t, err, "a link of %s", filepath.Base(page))
			}
		}
	}
}

// testLicences: the package has the licence of each linked module.
func testLicences(t *testing.T, dir string) {
	zipped, err := gzip.NewReader(bytes.NewReader(read(t, filepath.Join(dir, "usr/share/doc/thinsnap/linked-modules.gz"))))
	require.NoError(t, err)
	text, err := io.ReadAll(zipped)
	require.NoError(t, err)
	licences := make(map[string]string)
	for part := range strings.SplitSeq("\n"+string(text), "\n==== ") {
		name, licence, _ := strings.Cut(part, "\n")
		licences[name] = licence
	}
	linked := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(command(t, "go", "version", "-m", filepath.Join(dir, "usr/bin/thinsnap")), -1)
	require.NotEmpty(t, linked)
	for _, module := range linked {
		require.Greater(t, len(licences[module[1]+" "+module[2]]), 500, "%s %s", module[1], module[2])
	}
}

// build builds the package, and returns its path.
func build(t *testing.T, dir string) string {
	t.Helper()
	return strings.TrimSpace(command(t, "../build.sh", dir, "deb"))
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(t, cmd.Run(), "%s: %s%s", cmd, &out, &errOut)
	return out.String() + errOut.String()
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	return content
}
