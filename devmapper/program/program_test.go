package program_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/program"
)

// script writes a program into a new directory, and returns the directory.
func script(t *testing.T, name, text string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	return dir
}

// with returns a context in which the programs of a directory are found first.
func with(ctx context.Context, dir string) context.Context {
	return program.WithDirectories(ctx, append([]string{dir}, program.Directories()...)...)
}

// TestCallersEnvironmentIsNotUsed: neither the caller's PATH nor its variables reach a program.
func TestCallersEnvironmentIsNotUsed(t *testing.T) {
	t.Setenv("PATH", script(t, "env", "echo of the user"))
	for _, name := range []string{"LVM_SYSTEM_DIR", "DM_DEV_DIR", "MKE2FS_CONFIG", "NOTIFY_SOCKET", "LD_PRELOAD", "LC_ALL"} {
		t.Setenv(name, "/home/user")
	}
	out, err := program.Run(t.Context(), program.Command{Args: []string{"env"}, Env: []string{"A=b c"}})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "LC_ALL=C", "A=b c",
	}, strings.Split(strings.TrimSpace(string(out.Out)), "\n"))
	out, err = program.Run(t.Context(), program.Command{Args: []string{"pwd"}})
	require.NoError(t, err)
	require.Equal(t, "/\n", string(out.Out))
}

func TestRun(t *testing.T) {
	ctx := with(t.Context(), script(t, "tool", `echo out; echo "to  $0 $1" >&2; exit $2`))
	out, err := program.Run(ctx, program.Command{Args: []string{"tool", "a b; c", "0"}})
	require.NoError(t, err)
	require.Equal(t, "out\n", string(out.Out))
	require.Contains(t, out.Err, "tool a b; c\n", "no shell")
	out, err = program.Run(ctx, program.Command{Args: []string{"tool", "x", "3"}})
	require.ErrorContains(t, err, "tool x 3: exit status 3: to ")
	require.Equal(t, "out\n", string(out.Out))
	_, err = program.Run(ctx, program.Command{Args: []string{"tool", "x", "3"}, Line: "tool"})
	require.ErrorContains(t, err, "tool: exit status 3: to ")
	reports := 0
	_, err = program.Run(program.WithProgress(ctx, func() { reports++ }), program.Command{Args: []string{"tool", "x", "0"}})
	require.NoError(t, err)
	require.Equal(t, 1, reports)
	_, err = program.Run(ctx, program.Command{Args: []string{"tool", "x", "3"}})
	status, ended := program.ExitStatus(err)
	require.True(t, ended)
	require.Equal(t, 3, status)

	_, err = program.Run(ctx, program.Command{Args: []string{"no-such-tool"}})
	require.ErrorIs(t, err, program.ErrNotFound)
	_, ended = program.ExitStatus(err)
	require.False(t, ended)

	begun := filepath.Join(t.TempDir(), "begun")
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(begun), "waits"),
		[]byte("#!/bin/sh\ntrap 'echo cleaned up; kill $!; exit 1' TERM\nsleep 600 & touch "+begun+"\nwait\n"), 0o700))
	ending, cancel := context.WithCancel(with(t.Context(), filepath.Dir(begun)))
	go func() {
		for {
			if _, err := os.Stat(begun); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	out, err = program.Run(ending, program.Command{Args: []string{"waits"}})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "cleaned up\n", string(out.Out))
}
