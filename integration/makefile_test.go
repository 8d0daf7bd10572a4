package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTagsAreNoShellCode: the name of a tag cannot run code in a build.
func TestTagsAreNoShellCode(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	require.NoError(t, err)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Makefile":               string(makefile),
		"integration/setup.sh":   "#!/bin/sh\n",
		"cache/go/bin/go":        "#!/bin/sh\nprintf '%s\\n' \"$@\" >built\n",
		"cache/go/bin/gotestsum": "#!/bin/sh\n",
		".gitignore":             "*\n",
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "THINSNAP_CACHE="+filepath.Join(dir, "cache"), "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	run("git", "init", "--quiet")
	run("git", "-c", "user.name=n", "-c", "user.email=n@example.org", "commit", "--quiet", "--allow-empty", "--message=m")
	run("git", "tag", "v1'$(touch${IFS}pwned)'`touch${IFS}pwned`\"")
	run("make", "build")
	require.NoFileExists(t, filepath.Join(dir, "pwned"))
	built, err := os.ReadFile(filepath.Join(dir, "built"))
	require.NoError(t, err)
	require.Contains(t, string(built), "-X main.version=1touchIFSpwnedtouchIFSpwned ")
}
