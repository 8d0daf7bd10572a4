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

	program   string
	env       []string // of the daemon, beyond the test's
	dir       string
	sockets   string
	under     []string
	process   *Process // nil until it is started
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
	// Device is the disk that LVM makes the pool on; without one it is made in files.
	Device string
	// ThinpPercent is how many percent of that disk the data gets at first.
	ThinpPercent int
	// DataSize and MetadataSize are those of the pool's files.
	DataSize, MetadataSize string
	// DataLimit is how large the data file may become by itself.
	DataLimit string
	// NoAutoextend keeps the pool from growing by itself.
	NoAutoextend bool
	LogLevel     string
	// MetricsAddress is a TCP address on which the metrics are served.
	MetricsAddress string
	// Under is a command that the daemon is started by, with its arguments.
	Under []string
	// NoSpares has every volume made when it is asked for.
	NoSpares bool
	// Program is what is run in the place of thinsnap, with Env added to the environment of the daemon.
	Program string
	Env     []string
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
	s := NewThinsnap(t, tools, poolName, o)
	s.Start(t)
	return s
}

// NewThinsnap is StartThinsnapWith for a daemon that is to be started later.
func NewThinsnap(t testing.TB, tools Tools, poolName string, o Options) *Thinsnap {
	t.Helper()
	s := &Thinsnap{
		PoolName: poolName, program: cmp.Or(o.Program, tools.Thinsnap), env: o.Env,
		dir: cmp.Or(o.Dir, t.TempDir()), sockets: ShortDir(t), under: o.Under,
	}
	s.Root = filepath.Join(s.dir, "root")
	threshold := 80
	if o.NoAutoextend {
		threshold = 100
	}
	settings := fmt.Sprintf(`version = 1
root = %q
address = %q
admin_address = %q
metrics_address = %q
[log]
level = %q
[pool]
name = %q
autoextend_threshold = %d
[pool.loop]
data_size = %q
data_limit = %q
metadata_size = %q
[filesystem]
type = %q
base_size = %q
`, s.Root, s.Proxy().Address, s.adminAddress(), o.MetricsAddress, cmp.Or(o.LogLevel, "debug"), poolName, threshold,
		cmp.Or(o.DataSize, "8GiB"), cmp.Or(o.DataLimit, "0B"), cmp.Or(o.MetadataSize, "64MiB"), cmp.Or(o.Filesystem, "ext4"), cmp.Or(o.BaseSize, "2GiB"))
	if o.Device != "" {
		settings += fmt.Sprintf("[pool.direct_lvm]\ndevice = %q\nthinp_percent = %d\n", o.Device, cmp.Or(o.ThinpPercent, 95))
	}
	if o.NoSpares {
		settings += "[spares]\nmost = 0\n"
	}
	require.NoError(t, os.WriteFile(s.config(), []byte(settings), 0o600))
	t.Cleanup(func() {
		if s.process != nil {
			s.process.killAndShow(t)
			require.NoError(t, s.Destroy())
		}
	})
	return s
}

// Destroy destroys the pool of a daemon that has ended, unless that was done before.
func (s *Thinsnap) Destroy() error {
	if s.destroyed {
		return nil
	}
	_, err := s.TryRun(nil, "pool", "destroy", "--yes")
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
	return command{program: s.program, args: []string{"--config", s.config()}}
}

// Start starts the daemon, for the first time or after [Thinsnap.Stop] or [Thinsnap.Kill]. It may outlive a subtest that
// calls this.
func (s *Thinsnap) Start(t testing.TB) {
	t.Helper()
	s.Launch(t)
	s.process.await(t, s.Ready)
}

// Launch is Start for a daemon that may never be ready. The variables are added to its environment.
func (s *Thinsnap) Launch(t testing.TB, env ...string) {
	t.Helper()
	args := append(slices.Clone(s.under), s.program, "--config", s.config(), "serve")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = slices.Concat(os.Environ(), s.env, env)
	s.process = launch(t, s.dir, s.PoolName, cmd)
	s.destroyed = false
}

// Ready tells whether the daemon can be used.
func (s *Thinsnap) Ready() bool { return listening(s.Proxy().Address) }

// Ended is closed when the daemon that was started last has ended.
func (s *Thinsnap) Ended() <-chan struct{} { return s.process.done }

// LogFile is where all that were started have written.
func (s *Thinsnap) LogFile() string { return s.process.log }

// Stop asks the daemon to end and waits until it has.
func (s *Thinsnap) Stop(t testing.TB) {
	t.Helper()
	s.process.Stop(t)
}

// Kill ends the daemon with no warning.
func (s *Thinsnap) Kill() { s.process.Kill() }

// TryRun is Run where a failure is an answer. The variables are added to the environment.
func (s *Thinsnap) TryRun(env []string, args ...string) (string, error) {
	c := s.command()
	c.env = append(os.Environ(), env...)
	return c.run(args...)
}

// Run runs a command of thinsnap's command line on the daemon and returns what it printed.
func (s *Thinsnap) Run(t testing.TB, args ...string) string {
	t.Helper()
	return s.command().must(t, args...)
}

// Page runs `thinsnap page` until the test ends, and returns the address that it prints.
func (s *Thinsnap) Page(t testing.TB) (url string) {
	t.Helper()
	c := s.command()
	dir := t.TempDir()
	const name = "page"
	p := start(t, t, dir, name, exec.Command(c.program, append(slices.Clone(c.args), name)...), func() bool {
		printed, err := os.ReadFile(filepath.Join(dir, name+".log"))
		url = string(printed)
		return err == nil && strings.HasSuffix(url, "/\n")
	})
	t.Cleanup(func() { p.Stop(t) })
	return strings.TrimSpace(url)
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
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			continue // gone meanwhile, or going
		}
		require.NoError(t, err)
		if strings.HasPrefix(string(name), prefix) {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}
