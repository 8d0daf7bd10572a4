package harness

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// Thinsnap is a thinsnap daemon with a pool of its own. It can be stopped and started again.
type Thinsnap struct {
	// PoolName is the name of the pool's mapped device, and the start of its volumes' names.
	PoolName string
	// Root is the directory of its data.
	Root string

	t         testing.TB // with which it ends
	tools     Tools
	dir       string
	sockets   string
	under     []string
	process   *Process
	destroyed bool
}

// ThinsnapName is what containerd calls the snapshotter.
const ThinsnapName = "thinsnap"

// Options are the settings of a thinsnap that tests differ in. Those that are left out have the values of
// [StartThinsnap].
type Options struct {
	// Dir is the directory for all of its data.
	Dir string
	// Filesystem and BaseSize are those of a snapshot.
	Filesystem, BaseSize string
	// DataSize and MetadataSize are those of the pool's files.
	DataSize, MetadataSize string
	LogLevel               string
	// Under is a command that the daemon is started by, with its arguments.
	Under []string
	// NoSpares has every volume made when it is asked for.
	NoSpares bool
}

// StartThinsnap makes a pool in files and starts the daemon on it. When the test ends so does the daemon, and the pool is
// destroyed.
func StartThinsnap(t testing.TB, tools Tools, poolName string) *Thinsnap {
	t.Helper()
	return StartThinsnapWith(t, tools, poolName, Options{})
}

// StartThinsnapWith is StartThinsnap with other settings.
func StartThinsnapWith(t testing.TB, tools Tools, poolName string, o Options) *Thinsnap {
	t.Helper()
	s := &Thinsnap{t: t, PoolName: poolName, tools: tools, dir: cmp.Or(o.Dir, t.TempDir()), sockets: ShortDir(t), under: o.Under}
	s.Root = filepath.Join(s.dir, "root")
	settings := fmt.Sprintf(`version = 1
root = %q
address = %q
admin_address = %q
[log]
level = %q
[pool]
name = %q
[pool.loop]
data_size = %q
metadata_size = %q
[filesystem]
type = %q
base_size = %q
`, s.Root, s.Proxy().Address, s.adminAddress(), cmp.Or(o.LogLevel, "debug"), poolName, cmp.Or(o.DataSize, "8GiB"),
		cmp.Or(o.MetadataSize, "64MiB"), cmp.Or(o.Filesystem, "ext4"), cmp.Or(o.BaseSize, "2GiB"))
	if o.NoSpares {
		settings += "[spares]\nmost = 0\n"
	}
	require.NoError(t, os.WriteFile(s.config(), []byte(settings), 0o600))
	t.Cleanup(func() {
		s.process.Kill()
		require.NoError(t, s.Destroy())
	})
	s.Start(t)
	return s
}

// Destroy destroys the pool of a daemon that has ended, unless that was done before.
func (s *Thinsnap) Destroy() error {
	if s.destroyed {
		return nil
	}
	_, err := s.command().run("pool", "destroy", "--yes")
	s.destroyed = err == nil
	return err
}

// PID is the daemon's.
func (s *Thinsnap) PID() int { return s.process.cmd.Process.Pid }

// Snapshotter is a client of the daemon, as containerd has one. The connection ends with the test.
func (s *Thinsnap) Snapshotter(t testing.TB) snapshots.Snapshotter {
	t.Helper()
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connect(t, s.Proxy().Address)), ThinsnapName)
}

// Admin is a client of the daemon's admin socket.
func (s *Thinsnap) Admin() *admin.Client { return admin.NewClient(s.adminAddress()) }

func (s *Thinsnap) adminAddress() string { return filepath.Join(s.sockets, "admin.sock") }

func (s *Thinsnap) config() string { return filepath.Join(s.dir, "config.toml") }

func (s *Thinsnap) command() command {
	return command{program: s.tools.Thinsnap, args: []string{"--config", s.config()}}
}

// Start starts the daemon after [Thinsnap.Stop] or [Thinsnap.Kill]. It may outlive a subtest that calls this.
func (s *Thinsnap) Start(t testing.TB) {
	t.Helper()
	args := append(slices.Clone(s.under), s.tools.Thinsnap, "--config", s.config(), "serve")
	cmd := exec.Command(args[0], args[1:]...)
	s.process = start(t, s.t, s.dir, s.PoolName, cmd, func() bool { return listening(s.Proxy().Address) })
}

// Stop asks the daemon to end and waits until it has.
func (s *Thinsnap) Stop(t testing.TB) {
	t.Helper()
	s.process.Stop(t)
}

// Kill ends the daemon with no warning.
func (s *Thinsnap) Kill() { s.process.Kill() }

// Run runs a command of thinsnap's command line on the daemon and returns what it printed.
func (s *Thinsnap) Run(t testing.TB, args ...string) string {
	t.Helper()
	return s.command().must(t, args...)
}

// Proxy is how containerd reaches the daemon.
func (s *Thinsnap) Proxy() Proxy {
	return Proxy{Name: ThinsnapName, Address: filepath.Join(s.sockets, "thinsnap.sock"), Root: s.Root}
}

// Info is what `thinsnap info --json` prints.
func (s *Thinsnap) Info(t testing.TB) admin.Info {
	t.Helper()
	var info admin.Info
	require.NoError(t, json.Unmarshal([]byte(s.Run(t, "info", "--json")), &info))
	return info
}

// MappedDevices lists the names of the mapped devices that start with a prefix.
func MappedDevices(t testing.TB, prefix string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/dm-*/dm/name")
	require.NoError(t, err)
	var names []string
	for _, file := range files {
		name, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			continue // gone meanwhile, or going
		}
		require.NoError(t, err)
		if strings.HasPrefix(string(name), prefix) {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}
