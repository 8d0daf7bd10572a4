package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// unit returns the systemd unit with a program that exists.
func unit(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("systemd/thinsnap.service")
	require.NoError(t, err)
	require.Contains(t, string(text), "ExecStart=/usr/local/bin/thinsnap serve\n")
	return strings.Replace(string(text), "/usr/local/bin/thinsnap serve", "/bin/true", 1)
}

// TestUnitSharesTheMountNameSpace: with any of these options thinsnap would have a private mount
// name space, and containerd would not see its mounts (exec_needs_mount_namespace in systemd's
// src/core/execute.c).
func TestUnitSharesTheMountNameSpace(t *testing.T) {
	private := regexp.MustCompile(`^(Private(Devices|Mounts|Tmp)|Protect(ControlGroups|Home|Kernel\w+|Proc|System)|ProcSubset|` +
		`\w+Paths|TemporaryFileSystem|MountFlags|MountImages|Root\w+|ExtensionImages|DynamicUser|LogNamespace)=`)
	for line := range strings.Lines(unit(t)) {
		require.NotRegexp(t, private, line)
	}
}

func TestUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	dmtest.RequireInstalled(t, err)
	file := filepath.Join(t.TempDir(), "thinsnap.service")
	require.NoError(t, os.WriteFile(file, []byte(unit(t)), 0o600))
	out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}
