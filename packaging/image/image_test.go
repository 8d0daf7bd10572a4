// Package image tests the image that build.sh builds for deploy/kubernetes.
package image

import (
	"debug/elf"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// programs returns the programs that the code runs.
func programs(t *testing.T) []string {
	t.Helper()
	name := regexp.MustCompile(`"(mkfs\.\w+|(?:lv|vg|pv)[a-z]+|wipefs|thin_[a-z]+)"`)
	var all []string
	for _, dir := range []string{"devmapper", "internal/provision"} {
		require.NoError(t, filepath.WalkDir("../../"+dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			code, err := os.ReadFile(path)
			for _, found := range name.FindAllSubmatch(code, -1) {
				all = append(all, string(found[1]))
			}
			return err
		}))
	}
	slices.Sort(all)
	all = slices.Compact(all)
	for _, known := range []string{"mkfs.ext4", "mkfs.xfs", "lvs", "pvcreate", "vgcreate", "wipefs", "thin_check", "thin_repair"} {
		require.Contains(t, all, known)
	}
	return all
}

// TestProgramsAreInTheImage: build.sh installs the Debian package of each program that thinsnap
// runs.
func TestProgramsAreInTheImage(t *testing.T) {
	script, err := os.ReadFile("build.sh")
	require.NoError(t, err)
	list := regexp.MustCompile(`--include=(\S+)`).FindSubmatch(script)
	require.NotNil(t, list)
	packages := strings.Split(string(list[1]), ",")
	for _, program := range programs(t) {
		path, err := exec.LookPath(program)
		dmtest.RequireInstalled(t, err)
		path, err = filepath.EvalSymlinks(path)
		require.NoError(t, err)
		// dpkg lists some files in /sbin, a link to /usr/sbin.
		out, err := exec.Command("dpkg-query", "--search", path).Output()
		if err != nil {
			out, err = exec.Command("dpkg-query", "--search", strings.TrimPrefix(path, "/usr")).Output()
		}
		require.NoError(t, err, path)
		owner, _, _ := strings.Cut(string(out), ":")
		require.Contains(t, packages, owner, "the package of %s", program)
	}
}

// archive returns the path of the image, which `make test-image` builds for both architectures.
func archive(t *testing.T) string {
	t.Helper()
	path := os.Getenv("THINSNAP_IMAGE")
	if path == "" {
		t.Skip("THINSNAP_IMAGE names no image: make test-image")
	}
	return path
}

// unpack returns the root of the image for an architecture, and its configuration.
func unpack(t *testing.T, arch string) (root string, image v1.Image) {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"skopeo", "--insecure-policy", "--override-arch", arch, "copy", "--quiet",
			"oci-archive:" + archive(t), "oci:" + dir + "/oci:latest"},
		{"umoci", "--log=error", "unpack", "--image", dir + "/oci:latest", dir + "/bundle"},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	out, err := exec.Command("skopeo", "inspect", "--config", "oci:"+dir+"/oci:latest").Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &image))
	return filepath.Join(dir, "bundle", "rootfs"), image
}

// versionFlag is the option with which a program only prints its version.
func versionFlag(program string) string {
	if strings.HasPrefix(program, "mkfs.") {
		return "-V"
	}
	return "--version"
}

// TestImageRunsItsPrograms runs every program in the root of an image, without other files.
func TestImageRunsItsPrograms(t *testing.T) {
	root, _ := unpack(t, runtime.GOARCH)
	// The mounts end with the program.
	in := func(args ...string) *exec.Cmd {
		const script = `for dir in proc sys dev; do mkdir -p "$0/$dir" && mount --rbind /$dir "$0/$dir" || exit; done; exec chroot "$0" "$@"`
		return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, root}, args...)...)
	}
	for _, args := range [][]string{{"/usr/bin/thinsnap", "version"}, {"/usr/bin/thinsnap", "config", "check"}} {
		out, err := in(args...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	for _, program := range programs(t) {
		out, err := in("/usr/sbin/"+program, versionFlag(program)).CombinedOutput()
		require.NoError(t, err, "%s: %s", program, out)
	}
}

// TestImageOfBothArchitectures: the images for amd64 and arm64 have the same files, programs of
// their architecture, and the OCI labels.
func TestImageOfBothArchitectures(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	overlay, err := os.ReadFile("../../deploy/kubernetes/overlays/k3s/serve/kustomization.yaml")
	require.NoError(t, err)
	tag := regexp.MustCompile(`newTag: (\S+)`).FindSubmatch(overlay)
	require.NotNil(t, tag)
	index, err := exec.Command("tar", "-xOf", archive(t), "index.json").Output()
	require.NoError(t, err)
	require.Contains(t, string(index), `"localhost/thinsnap:`+string(tag[1])+`"`, "the manifests must find the imported image")
	packages := make(map[string][]string)
	for arch, machine := range machines {
		root, image := unpack(t, arch)
		require.Equal(t, arch, image.Architecture)
		require.Equal(t, []string{"/usr/bin/thinsnap"}, image.Config.Entrypoint)
		labels := image.Config.Labels
		require.Equal(t, "Apache-2.0", labels["org.opencontainers.image.licenses"])
		require.Equal(t, "https://github.com/thinsnap/thinsnap", labels["org.opencontainers.image.source"])
		require.Regexp(t, `^[0-9]`, labels["org.opencontainers.image.version"])
		require.Regexp(t, `^[0-9a-f]{40}$`, labels["org.opencontainers.image.revision"])
		require.Equal(t, image.Created.Format(time.RFC3339), labels["org.opencontainers.image.created"])

		all := []string{"usr/bin/thinsnap"}
		for _, program := range programs(t) {
			all = append(all, "usr/sbin/"+program)
		}
		for _, program := range all {
			path, err := filepath.EvalSymlinks(filepath.Join(root, program))
			require.NoError(t, err)
			file, err := elf.Open(path)
			require.NoError(t, err, program)
			require.Equal(t, machine, file.Machine, program)
			require.NoError(t, file.Close())
		}
		for _, name := range []string{
			"etc/thinsnap/config.toml", "usr/lib/os-release", "usr/lib/systemd/system/thinsnap.service",
			"usr/share/doc/thinsnap/copyright", "usr/share/doc/thinsnap/linked-modules.gz",
		} {
			require.FileExists(t, filepath.Join(root, name))
		}
		for _, name := range []string{"etc/resolv.conf", "etc/hostname", "etc/apt"} { // files of the machine that built it
			require.NoFileExists(t, filepath.Join(root, name))
		}
		entries, err := os.ReadDir(filepath.Join(root, "var/lib/dpkg/status.d"))
		require.NoError(t, err)
		for _, entry := range entries {
			packages[arch] = append(packages[arch], entry.Name())
		}
	}
	require.Contains(t, packages["amd64"], "lvm2")
	require.NotContains(t, packages["amd64"], "python3")
	require.Equal(t, packages["amd64"], packages["arm64"])
}

// TestImageRunsUnderEmulation runs the programs of the arm64 image with QEMU.
func TestImageRunsUnderEmulation(t *testing.T) {
	qemu := os.Getenv("THINSNAP_QEMU_AARCH64")
	if qemu == "" {
		t.Skip("THINSNAP_QEMU_AARCH64 names no qemu-aarch64-static: make test-image")
	}
	root, _ := unpack(t, "arm64")
	in := func(args ...string) {
		args[0] = filepath.Join(root, args[0])
		out, err := exec.Command(qemu, append([]string{"-L", root}, args...)...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	in("/usr/bin/thinsnap", "version")
	for _, program := range programs(t) {
		in("/usr/sbin/"+program, versionFlag(program))
	}
}
