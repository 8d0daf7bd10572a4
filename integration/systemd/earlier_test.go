package systemd

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// earlier is the commit from which upgrades start. The configuration's keys got their final names later.
const earlier = "fb6bf5b"

// debEarlier builds the package of the earlier version.
func debEarlier(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	for _, args := range [][]string{
		{"git", "clone", "--quiet", "--no-checkout", "--shared", "../..", dir},
		{"git", "-C", dir, "checkout", "--quiet", earlier},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	cmd := exec.Command(filepath.Join(dir, "packaging/debian/build.sh"), t.TempDir())
	cmd.Env = append(cmd.Environ(), "THINSNAP_DEB_COMPRESSION=none")
	out, err := cmd.Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}
