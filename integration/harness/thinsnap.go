package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// Thinsnap is a thinsnap daemon with a pool of its own. It can be stopped and started again.
type Thinsnap struct {
	// PoolName is the name of the pool's mapped device, and the start of its volumes' names.
	PoolName string
	// Root is the directory of its data.
	Root string

	tools   Tools
	dir     string
	sockets string
	process *Process
}

// ThinsnapName is what containerd calls the snapshotter.
const ThinsnapName = "thinsnap"

// StartThinsnap makes a pool in files and starts the daemon on it. When the test ends so does the daemon, and the pool is
// destroyed.
func StartThinsnap(t *testing.T, tools Tools, poolName string) *Thinsnap {
	t.Helper()
	s := &Thinsnap{PoolName: poolName, tools: tools, dir: t.TempDir(), sockets: ShortDir(t)}
	s.Root = filepath.Join(s.dir, "root")
	settings := fmt.Sprintf(`version = 1
root = %q
address = %q
admin_address = %q
[log]
level = "debug"
[pool]
name = %q
[pool.loop]
data_size = "8GiB"
metadata_size = "64MiB"
[filesystem]
base_size = "2GiB"
`, s.Root, s.Proxy().Address, filepath.Join(s.sockets, "admin.sock"), poolName)
	require.NoError(t, os.WriteFile(s.config(), []byte(settings), 0o600))
	t.Cleanup(func() {
		s.process.Kill()
		_, err := s.command().run("pool", "destroy", "--yes")
		require.NoError(t, err)
	})
	s.Start(t)
	return s
}

func (s *Thinsnap) config() string { return filepath.Join(s.dir, "config.toml") }

func (s *Thinsnap) command() command {
	return command{program: s.tools.Thinsnap, args: []string{"--config", s.config()}}
}

// Start starts the daemon after [Thinsnap.Stop] or [Thinsnap.Kill].
func (s *Thinsnap) Start(t *testing.T) {
	t.Helper()
	cmd := exec.Command(s.tools.Thinsnap, "--config", s.config(), "serve")
	s.process = start(t, s.dir, s.PoolName, cmd, func() bool { return listening(s.Proxy().Address) })
}

// Stop asks the daemon to end and waits until it has.
func (s *Thinsnap) Stop(t *testing.T) {
	t.Helper()
	s.process.Stop(t)
}

// Kill ends the daemon with no warning.
func (s *Thinsnap) Kill() { s.process.Kill() }

// Run runs a command of thinsnap's command line on the daemon and returns what it printed.
func (s *Thinsnap) Run(t *testing.T, args ...string) string {
	t.Helper()
	return s.command().must(t, args...)
}

// Proxy is how containerd reaches the daemon.
func (s *Thinsnap) Proxy() Proxy {
	return Proxy{Name: ThinsnapName, Address: filepath.Join(s.sockets, "thinsnap.sock"), Root: s.Root}
}

// Info is what `thinsnap info --json` prints.
func (s *Thinsnap) Info(t *testing.T) admin.Info {
	t.Helper()
	var info admin.Info
	require.NoError(t, json.Unmarshal([]byte(s.Run(t, "info", "--json")), &info))
	return info
}

// MappedDevices lists the names of the mapped devices that start with a prefix.
func MappedDevices(t *testing.T, prefix string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/dm-*/dm/name")
	require.NoError(t, err)
	var names []string
	for _, file := range files {
		name, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		require.NoError(t, err)
		if strings.HasPrefix(string(name), prefix) {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}
