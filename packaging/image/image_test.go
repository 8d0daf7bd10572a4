// Package image tests the image that build.sh builds for docs/kubernetes/daemonset.yaml.
package image

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// programs returns the programs that the code names.
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

// TestProgramsAreInTheImage: build.sh installs the Debian package of each program that thinsnap executes.
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
		// dpkg knows some files below /sbin, which is a link to /usr/sbin.
		out, err := exec.Command("dpkg-query", "--search", path).Output()
		if err != nil {
			out, err = exec.Command("dpkg-query", "--search", strings.TrimPrefix(path, "/usr")).Output()
		}
		require.NoError(t, err, path)
		owner, _, _ := strings.Cut(string(out), ":")
		require.Contains(t, packages, owner, "the package of %s", program)
	}
}

// TestImageRunsItsPrograms runs every program in the root of an image, with nothing else: `make test-image` builds it.
func TestImageRunsItsPrograms(t *testing.T) {
	archive := os.Getenv("THINSNAP_IMAGE")
	if archive == "" {
		t.Skip("THINSNAP_IMAGE names no image: make test-image")
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"skopeo", "--insecure-policy", "copy", "--quiet", "oci-archive:" + archive + ":localhost/thinsnap:latest", "oci:" + dir + "/oci:latest"},
		{"umoci", "--log=error", "unpack", "--image", dir + "/oci:latest", dir + "/bundle"},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	root := filepath.Join(dir, "bundle", "rootfs")
	// The mounts end with the program.
	in := func(args ...string) *exec.Cmd {
		const script = `for dir in proc sys dev; do mount --rbind /$dir "$0/$dir" || exit; done; exec chroot "$0" "$@"`
		return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, root}, args...)...)
	}
	for _, args := range [][]string{{"/usr/bin/thinsnap", "version"}, {"/usr/bin/thinsnap", "config", "check"}} {
		out, err := in(args...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	for _, program := range programs(t) {
		flag := "--version"
		if strings.HasPrefix(program, "mkfs.") {
			flag = "-V"
		}
		out, err := in("/usr/sbin/"+program, flag).CombinedOutput()
		require.NoError(t, err, "%s: %s", program, out)
	}
}
