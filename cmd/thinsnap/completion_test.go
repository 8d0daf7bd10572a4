package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// oddReports is a daemon with keys that shells could misinterpret.
type oddReports struct{ fakeReports }

const (
	commandKey = "odd/1/$(touch pwned) `touch pwned`;&x"
	quotesKey  = `odd/2/a\b 'c' "d" *`
	rowsKey    = "odd/3/two\nrows"
)

func (oddReports) Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error) {
	snapshots, err := fakeReports{}.Snapshots(ctx, true)
	for _, key := range []string{commandKey, quotesKey, rowsKey, "-odd", ":odd"} {
		snapshots = append(snapshots, admin.Snapshot{Key: key, Kind: admin.KindActive})
	}
	return snapshots, err
}

func TestComplete(t *testing.T) {
	address := fakeDaemonOf(t, oddReports{})
	file := filepath.Join(t.TempDir(), "config.toml")
	require.NoError(t, os.WriteFile(file, []byte("admin_address = \""+address+"\"\n"), 0o600))
	for line, want := range map[string][]string{
		"ch":                                    {"check"},
		"pool d":                                {"destroy"},
		"completion ":                           {"bash", "zsh", "fish"},
		"pool destroy --y":                      {"--yes"},
		"config from-docker ":                   {":files"},
		"info --":                               {"--json", "--help", "--config", "--admin-address"},
		"serve --log-level ":                    {"trace", "debug", "info", "warn", "error"},
		"serve --log-level=w":                   {"--log-level=warn"},
		"--config ":                             {":files"},
		"check --root ":                         {":directories"},
		"check --root=/va":                      {":directories"},
		"config check ":                         {":files"},
		"config check some.toml ":               nil,
		"config from-c":                         {"from-containerd"},
		"config from-containerd ":               {":files"},
		"adopt devmapper --root-path ":          {":directories"},
		"adopt devmapper --containerd-config ":  {":files"},
		"nothing ":                              nil,
		"info --nothing ":                       nil,
		"info --nothing=":                       nil,
		"pool destroy --yes -- -":               nil,
		"--admin-address /none inspect ":        nil,
		"inspect --config " + file + " def":     {layerKey, layer2Key, containerKey, viewKey},
		"--config=" + file + " inspect odd":     {commandKey, quotesKey},
		"--config " + file + " pool trim def":   {layerKey, layer2Key, containerKey, viewKey},
		"--config " + file + " pool trim a def": {layerKey, layer2Key, containerKey, viewKey},
		"--config " + file + " fork ":           {"box", containerKey, commandKey, quotesKey},
		"--config " + file + " fork def":        {containerKey},
		"--config " + file + " fork box ":       nil,
		"--config " + file + " inspect -- :":    nil,
		"--config " + file + " inspect - ":      nil,
		"--config " + file + " inspect key ":    nil,
		"--config " + file + " inspect --json":  {"--json"},
	} {
		out := output(t, false, append([]string{"complete"}, strings.Split(line, " ")...)...)
		var got []string
		for row := range strings.Lines(out) {
			value, _, _ := strings.Cut(strings.TrimSuffix(row, "\n"), "\t")
			got = append(got, value)
		}
		require.Equal(t, want, got, line)
	}
	require.Equal(t, exitUsage, try(t, false, backend{}, "complete").code)
}

// TestLogLevelsAreCompleted: the candidates are the levels that the configuration accepts.
func TestLogLevelsAreCompleted(t *testing.T) {
	for level := range strings.Lines(output(t, false, "complete", "serve", "--log-level", "")) {
		cfg := config.Default()
		cfg.Log.Level = strings.TrimSpace(level)
		require.NoError(t, cfg.Validate())
	}
}

// shell is a directory with a command thinsnap that uses a fake daemon, and records its command
// lines.
type shell struct {
	dir string
	env []string
}

func newShell(t *testing.T) shell {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in comp*) %s=1 exec %s --admin-address %s \"$@\" ;; esac\nprintf '<%%s>' \"$@\" >called\n",
		commandVariable, self, fakeDaemonOf(t, oddReports{}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "thinsnap"), []byte(script), 0o755))
	return shell{dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "TERM=dumb", "LC_ALL=C.UTF-8")}
}

// typed types keys into a program on a terminal until it has run thinsnap, and returns the recorded
// command line.
func (s shell) typed(t *testing.T, program, keys string) string {
	t.Helper()
	called := filepath.Join(s.dir, "called")
	require.NoError(t, os.RemoveAll(called))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "script", "-qec", program, "/dev/null")
	cmd.Dir, cmd.Env = s.dir, s.env
	cmd.Stdin = strings.NewReader(keys + "\nexit\n")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	arguments, err := os.ReadFile(called)
	require.NoError(t, err, "%s", out)
	require.NoFileExists(t, filepath.Join(s.dir, "pwned"))
	return string(arguments)
}

// look skips the test if a program is not installed.
func look(t *testing.T, program string) {
	t.Helper()
	_, err := exec.LookPath(program)
	dmtest.RequireInstalled(t, err)
}

// sourced writes a shell's start file that loads the completion of thinsnap.
func (s shell) sourced(t *testing.T, first, name string) string {
	t.Helper()
	script, err := completionScripts.ReadFile("completion/thinsnap." + name)
	require.NoError(t, err)
	file := filepath.Join(s.dir, "rc."+name)
	require.NoError(t, os.WriteFile(file, append([]byte(first+"\n"), script...), 0o600))
	return file
}

// lines maps typed lines with tabs to the resulting command lines of thinsnap.
var lines = map[string]string{
	"thinsnap pool des\t --y\t":                   "<pool><destroy><--yes>",
	"thinsnap serve --log-level=w\t":              "<serve><--log-level=warn>",
	"thinsnap config check --config /et\thostn\t": "<config><check><--config></etc/hostname>",
	"thinsnap inspect default/1/\t":               "<inspect><" + layerKey + ">",
	"thinsnap inspect default/1/sha256:1\t":       "<inspect><" + layerKey + ">",
	"thinsnap inspect odd/1\t":                    "<inspect><" + commandKey + ">",
	"thinsnap inspect odd/2\t":                    "<inspect><" + quotesKey + ">",
}

func TestBashCompletes(t *testing.T) {
	_, err := os.Stat("/usr/share/bash-completion/bash_completion")
	dmtest.RequireInstalled(t, err)
	s := newShell(t)
	rc := s.sourced(t, ". /usr/share/bash-completion/bash_completion", "bash")
	for line, want := range lines {
		require.Equal(t, want, s.typed(t, "bash --noprofile --rcfile "+rc, line), line)
	}
	require.Equal(t, `<inspect><odd/1>`, s.typed(t, "bash --noprofile --rcfile "+rc, "thinsnap inspect \"odd/1\t\""),
		"within quotes a key could be a command")
}

func TestZshCompletes(t *testing.T) {
	look(t, "zsh")
	s := newShell(t)
	rc := s.sourced(t, "autoload -Uz compinit; compinit -u -D; unsetopt zle_bracketed_paste", "zsh")
	require.NoError(t, os.Rename(rc, filepath.Join(s.dir, ".zshrc")))
	for line, want := range lines {
		require.Equal(t, want, s.typed(t, "zsh -i --no-globalrcs", line), line)
	}
}

// TestFishCompletes asks fish for its candidates, which needs no terminal.
func TestFishCompletes(t *testing.T) {
	look(t, "fish")
	s := newShell(t)
	rc := s.sourced(t, "", "fish")
	for line, want := range map[string]string{
		"thinsnap pool des":            "destroy",
		"thinsnap serve --log-level=w": "--log-level=warn",
		"thinsnap --config /etc/hostn": "/etc/hostname",
		"thinsnap inspect default/1/":  layerKey,
		"thinsnap inspect odd/1":       commandKey,
		"thinsnap inspect odd/2":       quotesKey,
	} {
		cmd := exec.Command("fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", rc, line)
		cmd.Dir, cmd.Env = s.dir, s.env
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		value, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\t")
		require.Equal(t, want, value, line)
	}
	require.NoFileExists(t, filepath.Join(s.dir, "pwned"))
}
