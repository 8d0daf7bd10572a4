// Package packaging tests the release that release.sh makes.
package packaging

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTarball: the tarball has the program and its files, and a second build gives the same bytes.
func TestTarball(t *testing.T) {
	build := func() string {
		return strings.TrimSpace(run(t, "..", "packaging/build.sh", t.TempDir(), "tar"))
	}
	file := build()
	require.Equal(t, read(t, file), read(t, build()))
	files := untar(t, file)
	top := strings.TrimSuffix(filepath.Base(file), ".tar.gz")
	require.Regexp(t, `^thinsnap-[0-9].*-linux-amd64$`, top)
	for _, name := range []string{
		"LICENSE", "README.md", "CHANGELOG.md", "linked-modules.gz", "config.toml", "docs/installation.md", "docs/page.png",
		"deploy/kubernetes/overlays/k3s/serve/kustomization.yaml", "docs/kubernetes/containerd-2.toml", "docs/prometheus/alerts.yml", "docs/grafana/thinsnap.json", "man/thinsnap.1",
		"man/thinsnap-config.toml.5", "completion/thinsnap.bash", "completion/thinsnap.fish", "completion/thinsnap.zsh",
		"systemd/thinsnap.service", "systemd/thinsnap.socket",
	} {
		require.Contains(t, files, top+"/"+name)
		require.Equal(t, int64(0o644), files[top+"/"+name].Mode, name)
	}
	require.Equal(t, int64(0o755), files[top+"/thinsnap"].Mode)
	for name, header := range files {
		require.True(t, strings.HasPrefix(name, top+"/"), name)
		require.Zero(t, header.Uid+header.Gid, name)
	}
}

// TestReleaseRefuses: a release needs a commit that others can find again.
func TestReleaseRefuses(t *testing.T) {
	dir := t.TempDir()
	repository(t, dir, "packaging", "CHANGELOG.md", "deploy")
	refused := func(why string) {
		t.Helper()
		out, err := command(dir, "packaging/release.sh", filepath.Join(dir, "out")).CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), why)
		require.NoDirExists(t, filepath.Join(dir, "out"))
	}
	refused("this commit has no tag: create one, such as: git tag --annotate v0.1.0")
	run(t, dir, "git", "tag", "v1.2")
	refused("the tag v1.2 is not a version: vMAJOR.MINOR.PATCH")
	run(t, dir, "git", "tag", "--delete", "v1.2")
	run(t, dir, "git", "tag", "v1.2.3")
	refused(`CHANGELOG.md has no section "## [1.2.3] - YYYY-MM-DD"`)
	changes := read(t, filepath.Join(dir, "CHANGELOG.md"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), append([]byte("## [1.2.3] - 2026-01-02\n"), changes...), 0o600))
	run(t, dir, "git", "commit", "--quiet", "--all", "--message=release")
	run(t, dir, "git", "tag", "--force", "v1.2.3")
	refused("kustomization.yaml has another newTag than 1.2.3")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
	refused("the work tree differs from the commit: commit or remove these first:\n?? new")
}

// TestRelease builds a release twice, in two directories, and compares the files.
func TestRelease(t *testing.T) {
	if os.Getenv("THINSNAP_RELEASE") == "" {
		t.Skip("THINSNAP_RELEASE is not set: make test-release")
	}
	one, another := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "another")
	require.NoError(t, os.Mkdir(one, 0o755))
	tagged(t, one)
	run(t, one, "git", "clone", "--quiet", one, another)
	first, second := filepath.Join(one, "bin", "release"), filepath.Join(another, "bin", "release")
	run(t, one, "packaging/release.sh", first)
	run(t, another, "packaging/release.sh", second)
	require.Equal(t, names(t, first), names(t, second))
	for _, name := range names(t, first) {
		require.True(t, bytes.Equal(read(t, filepath.Join(first, name)), read(t, filepath.Join(second, name))), name)
	}
	all := []string{
		"thinsnap_9.8.7_amd64.deb", "thinsnap_9.8.7_arm64.deb", "thinsnap-9.8.7-1.x86_64.rpm", "thinsnap-9.8.7-1.aarch64.rpm",
		"thinsnap-9.8.7-linux-amd64.tar.gz", "thinsnap-9.8.7-linux-arm64.tar.gz", "thinsnap-9.8.7-image.tar",
		"thinsnap-9.8.7-linux-amd64.cdx.json", "thinsnap-9.8.7-linux-arm64.cdx.json",
	}
	require.ElementsMatch(t, append(all, "SHA256SUMS"), names(t, first))
	checked := run(t, first, "sha256sum", "--check", "--strict", "SHA256SUMS")
	require.Equal(t, len(all), strings.Count(checked, ": OK\n"))

	dir := t.TempDir()
	run(t, dir, "tar", "-xzf", filepath.Join(first, "thinsnap-9.8.7-linux-amd64.tar.gz"))
	program := filepath.Join(dir, "thinsnap-9.8.7-linux-amd64", "thinsnap")
	require.Contains(t, run(t, dir, program, "version"), "thinsnap 9.8.7\n")
	for _, arch := range []string{"amd64", "arm64"} {
		testBill(t, filepath.Join(first, "thinsnap-9.8.7-linux-"+arch+".cdx.json"), arch)
	}
	index := run(t, first, "tar", "-xOf", "thinsnap-9.8.7-image.tar", "index.json")
	require.Contains(t, index, `"io.containerd.image.name":"ghcr.io/thinsnap/thinsnap:9.8.7"`)
}

// testBill: a bill of materials lists the modules of the program and the packages of the image,
// with versions.
func testBill(t *testing.T, file, arch string) {
	t.Helper()
	var bill struct {
		BOMFormat  string
		Metadata   struct{ Timestamp string }
		Components []struct{ Name, Version, PURL string }
	}
	require.NoError(t, json.Unmarshal(read(t, file), &bill))
	require.Equal(t, "CycloneDX", bill.BOMFormat)
	require.NotEmpty(t, bill.Metadata.Timestamp)
	urls := make(map[string]string)
	for _, c := range bill.Components {
		require.NotEmpty(t, c.Version, c.Name)
		urls[c.Name] = c.PURL
	}
	require.Contains(t, urls["go.etcd.io/bbolt"], "pkg:golang/go.etcd.io/bbolt@v")
	require.Contains(t, urls["std"], "pkg:golang/std@go")
	require.Regexp(t, `^pkg:deb/debian/lvm2@.*\?arch=`+arch+`&distro=debian-`, urls["lvm2"])
}

// tagged creates a repository of the work tree, with a tag and its section of the changelog.
func tagged(t *testing.T, dir string) {
	t.Helper()
	listed := strings.Fields(run(t, "..", "git", "ls-files", "--cached", "--others", "--exclude-standard"))
	repository(t, dir, slices.DeleteFunc(listed, func(name string) bool {
		_, err := os.Lstat(filepath.Join("..", name))
		return errors.Is(err, os.ErrNotExist)
	})...)
	path := filepath.Join(dir, "CHANGELOG.md")
	text := strings.Replace(string(read(t, path)), "## [Unreleased]", "## [9.8.7] - 2026-01-02", 1)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	run(t, dir, "sh", "-c", "grep -rl newTag deploy | xargs sed -i 's/newTag: .*/newTag: 9.8.7/'")
	run(t, dir, "git", "commit", "--quiet", "--all", "--message=release")
	run(t, dir, "git", "tag", "v9.8.7")
}

// repository creates a repository in a directory, with files of this one, and one commit.
func repository(t *testing.T, dir string, files ...string) {
	t.Helper()
	for start := 0; start < len(files); start += 100 {
		chunk := files[start:min(start+100, len(files))]
		run(t, "..", "cp", append(append([]string{"--recursive", "--parents"}, chunk...), dir)...)
	}
	run(t, dir, "git", "init", "--quiet")
	run(t, dir, "git", "add", "--all")
	run(t, dir, "git", "commit", "--quiet", "--message=all")
}

// command returns a command that ignores the user's git settings, so that commits are reproducible.
func command(dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=n", "GIT_AUTHOR_EMAIL=n@example.org",
		"GIT_COMMITTER_NAME=n", "GIT_COMMITTER_EMAIL=n@example.org",
		"GIT_AUTHOR_DATE=2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
	return cmd
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := command(dir, name, args...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(t, cmd.Run(), "%s: %s%s", cmd, &out, &errOut)
	return out.String()
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var all []string
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	return content
}

// untar returns the headers of a compressed tar file's regular files.
func untar(t *testing.T, file string) map[string]*tar.Header {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(read(t, file)))
	require.NoError(t, err)
	files := make(map[string]*tar.Header)
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		if header.Typeflag == tar.TypeReg {
			files[header.Name] = header
		}
	}
}
