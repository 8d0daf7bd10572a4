package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// vmrun builds the program and returns a function that runs it.
func vmrun(t *testing.T) func(args ...string) (status int, stdout, stderr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmrun")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return func(args ...string) (int, string, string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		cmd := exec.Command(path, args...)
		cmd.Env = append(os.Environ(), "THINSNAP_VM=")
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
			require.NoError(t, err)
		}
		return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
	}
}

func TestOnTheHost(t *testing.T) {
	run := vmrun(t)
	tests := map[string]struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		"success":        {[]string{"echo", "a  b"}, 0, "a  b\n", ""},
		"status":         {[]string{"sh", "-c", "echo no >&2; exit 3"}, 3, "", "no\n"},
		"signal":         {[]string{"sh", "-c", "kill -9 $$"}, 137, "", ""},
		"environment":    {[]string{"-env", "WORD=x y", "sh", "-c", "echo $WORD"}, 0, "x y\n", ""},
		"time limit":     {[]string{"-timeout=200ms", "sleep", "100"}, 124, "", "sleep: still running after 200ms\n"},
		"not a program":  {[]string{"/etc/passwd"}, 126, "", "permission denied"},
		"no program":     {[]string{"no-such-program"}, 127, "", "no-such-program"},
		"nothing to run": {nil, 125, "", "no program given"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := run(append([]string{"-direct=always"}, tt.args...)...)
			require.Equal(t, tt.status, status, stderr)
			require.Equal(t, tt.stdout, stdout)
			require.Contains(t, stderr, tt.stderr)
		})
	}
}

func TestInAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests: -short")
	}
	dmtest.RequireInstalled(t, vm.Installed())
	run := vmrun(t)
	dir := t.TempDir()
	t.Run("status, output and results", func(t *testing.T) {
		status, stdout, stderr := run("-direct=never", "-share", dir, "-disk", filepath.Join(dir, "disk")+":32MiB",
			"sh", "-c", "id -u; blockdev --getsize64 $THINSNAP_DISK0; echo result > "+dir+"/result; echo err >&2; exit 5")
		require.Equal(t, 5, status, stderr)
		require.Equal(t, "0\n33554432\n", stdout)
		require.Equal(t, "err\n", stderr)
		result, err := os.ReadFile(filepath.Join(dir, "result"))
		require.NoError(t, err)
		require.Equal(t, "result\n", string(result))
	})
	t.Run("a hanging guest is killed and its console shown", func(t *testing.T) {
		status, _, stderr := run("-direct=never", "-timeout=3s", "sh", "-c",
			"echo last words > /dev/console; sleep 10000")
		require.Equal(t, 124, status, stderr)
		require.Contains(t, stderr, "still running after 3s")
		require.Contains(t, stderr, "last words")
	})
}

func TestParseDisk(t *testing.T) {
	tests := map[string]struct {
		want vm.Disk
		ok   bool
	}{
		"/a/b":        {vm.Disk{Path: "/a/b"}, true},
		"/a/b:10GiB":  {vm.Disk{Path: "/a/b", Size: 10 << 30}, true},
		"/a:b/c:1MiB": {vm.Disk{Path: "/a:b/c", Size: 1 << 20}, true},
		"/a:much":     {vm.Disk{}, false},
		"":            {vm.Disk{}, false},
	}
	for in, tt := range tests {
		t.Run(in, func(t *testing.T) {
			got, err := parseDisk(in)
			require.Equal(t, tt.ok, err == nil, "%v", err)
			if tt.ok {
				require.Equal(t, tt.want, got)
			}
		})
	}
}
