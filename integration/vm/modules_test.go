package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResolveModules(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	write("modules.dep", "kernel/a-b.ko: kernel/c.ko.xz kernel/d.ko\nkernel/c.ko.xz: kernel/d.ko\nkernel/d.ko:\nkernel/e.ko: kernel/a-b.ko\n")
	write("modules.builtin", "kernel/built-in.ko\n")
	tests := map[string]struct {
		names, want []string
		err         string
	}{
		"none":              {},
		"no dependencies":   {names: []string{"d"}, want: []string{"kernel/d.ko"}},
		"dashes":            {names: []string{"a_b"}, want: []string{"kernel/d.ko", "kernel/c.ko.xz", "kernel/a-b.ko"}},
		"each once":         {names: []string{"c", "e", "d"}, want: []string{"kernel/d.ko", "kernel/c.ko.xz", "kernel/a-b.ko", "kernel/e.ko"}},
		"built in":          {names: []string{"built-in"}},
		"unknown is stated": {names: []string{"nope"}, err: "kernel module nope"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := resolveModules(dir, tt.names)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// busybox is a second reader of the archive's format besides the kernel.
func TestCPIO(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("needs busybox")
	}
	var w cpioWriter
	w.dir("d")
	w.file("d/odd", []byte("12345"))
	w.symlink("link", "d/odd")
	cmd := exec.Command("busybox", "cpio", "-idm")
	cmd.Dir = t.TempDir()
	cmd.Stdin = bytes.NewReader(w.bytes())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	content, err := os.ReadFile(filepath.Join(cmd.Dir, "link"))
	require.NoError(t, err)
	require.Equal(t, "12345", string(content))
}

func TestConsoleKeepsTheLastLines(t *testing.T) {
	var c console
	_, err := c.Write([]byte(strings.Repeat("old\n", 2*consoleLines) + "one\r\ntw"))
	require.NoError(t, err)
	_, err = c.Write([]byte("o\nthree"))
	require.NoError(t, err)
	require.Equal(t, "old\none\ntwo\nthree", c.tail(4))
	require.Len(t, strings.Split(c.tail(10*consoleLines), "\n"), consoleLines+1)
}
