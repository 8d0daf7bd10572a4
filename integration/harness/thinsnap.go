package harness

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// Thinsnap is a thinsnap daemon with a pool of its own. It can be stopped and started again.
type Thinsnap struct {
	*Process // nil before the first start
	Options

	destroyed bool
}

// ThinsnapName is the snapshotter's name in containerd.
const ThinsnapName = "thinsnap"

// Options are the settings of a thinsnap. Omitted ones get the values of [NewThinsnap].
type Options struct {
	// PoolName is the name of the pool's mapped device, and the prefix of its volumes' names.
	PoolName string
	// Dir is the directory of its configuration and log.
	Dir string
	// Root is the directory of its data: by default, a directory in Dir.
	Root string
	// Sockets is the directory of its sockets, whose paths have a maximum length.
	Sockets string
	// Filesystem and BaseSize apply to a snapshot; MaxSize is the largest size that a label can set.
	Filesystem, BaseSize, MaxSize string
	// Device is the disk on which LVM makes the pool; without it the pool is in files.
	Device string
	// ThinpPercent is the first size of the data, in percent of Device.
	ThinpPercent int
	// DataSize is the limit of the data file's automatic extension; MetadataSize is the first size of the metadata
	// file.
	DataSize, MetadataSize string
	// NoAutoextend turns automatic extension off.
	NoAutoextend bool
	LogLevel     string
	// MetricsAddress is the TCP address of the metrics.
	MetricsAddress string
	// Under is a command, with arguments, that runs the daemon.
	Under []string
	// NoSpares turns spares off.
	NoSpares bool
	// VerifyDiffs has each layer of the differ compared with that of the walking differ.
	VerifyDiffs bool
	// DiffContainerd is the socket of the containerd that gets all layers of the differ.
	DiffContainerd string
	// Clients are the names of key spaces beyond the default one.
	Clients []string
	// Program is the daemon's program; Env is added to its environment.
	Program string
	Env     []string
	// Output gets the daemon's output; nil means a log in Dir.
	Output *os.File
}

// NewThinsnap writes the configuration of a thinsnap.
func NewThinsnap(o Options) (*Thinsnap, error) {
	o.Root = cmp.Or(o.Root, filepath.Join(o.Dir, "root"))
	s := &Thinsnap{Options: o}
	threshold := 80
	if o.NoAutoextend {
		threshold = 100
	}
	spares := ""
	if o.NoSpares {
		spares = "spares_max = 0\n"
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
%s[pool.loop]
data_size = %q
metadata_size = %q
[filesystem]
type = %q
base_size = %q
max_size = %q
`, s.Root, s.Proxy().Address, s.adminAddress(), o.MetricsAddress, cmp.Or(o.LogLevel, "debug"), o.PoolName, threshold, spares,
		cmp.Or(o.DataSize, "8GiB"), cmp.Or(o.MetadataSize, "64MiB"),
		cmp.Or(o.Filesystem, "ext4"), cmp.Or(o.BaseSize, "2GiB"), cmp.Or(o.MaxSize, "0B"))
	if o.Device != "" {
		settings += fmt.Sprintf("[pool.direct_lvm]\ndevice = %q\nthinp_percent = %d\n", o.Device, cmp.Or(o.ThinpPercent, 95))
	}
	settings += fmt.Sprintf("[diff]\nverify = %v\ncontainerd = %q\n", o.VerifyDiffs, o.DiffContainerd)
	for _, client := range o.Clients {
		settings += fmt.Sprintf("[[clients]]\nname = %q\naddress = %q\n", client, s.ProxyOf(client).Address)
	}
	for _, dir := range []string{o.Dir, o.Sockets} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return s, os.WriteFile(s.Config(), []byte(settings), 0o600)
}

// Config returns the path of the configuration.
func (s *Thinsnap) Config() string { return filepath.Join(s.Dir, "config.toml") }

func (s *Thinsnap) adminAddress() string { return filepath.Join(s.Sockets, "admin.sock") }

// Proxy returns the snapshotter's configuration in containerd.
func (s *Thinsnap) Proxy() Proxy {
	return Proxy{Name: ThinsnapName, Address: filepath.Join(s.Sockets, "thinsnap.sock"), Root: s.Root}
}

// ProxyOf returns the snapshotter's configuration in the containerd of one of Clients.
func (s *Thinsnap) ProxyOf(client string) Proxy {
	return Proxy{Name: ThinsnapName, Address: filepath.Join(s.Sockets, client+".sock"), Root: s.Root}
}

// Start starts the daemon, for the first time or after its end, and waits until it is ready.
func (s *Thinsnap) Start() error {
	if err := s.Launch(); err != nil {
		return err
	}
	return s.Await(s.Ready)
}

// Launch is Start without the wait, for a daemon that may never be ready. The variables are added to its environment.
func (s *Thinsnap) Launch(env ...string) (err error) {
	args := append(slices.Clone(s.Under), s.Program, "--config", s.Config(), "serve")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = slices.Concat(os.Environ(), s.Env, env)
	s.Process, err = launch(cmd, s.Dir, s.PoolName, s.Output)
	s.destroyed = false
	return err
}

// Kill ends the daemon that was started last, as a crash would.
func (s *Thinsnap) Kill() { s.Process.Kill() }

// Ready reports whether the daemon has opened its pool. It accepts containerd's connections earlier.
func (s *Thinsnap) Ready() bool {
	_, err := s.Admin().Pool(context.Background())
	return err == nil
}

// Destroy destroys the pool of a daemon that has ended, unless it is already destroyed.
func (s *Thinsnap) Destroy() error {
	if s.destroyed {
		return nil
	}
	_, err := s.TryRun(nil, "pool", "destroy", "--yes")
	s.destroyed = err == nil
	return err
}

// TryRun runs a thinsnap command and returns its standard output. The variables are added to its environment.
func (s *Thinsnap) TryRun(env []string, args ...string) (string, error) {
	return Run(append(os.Environ(), env...), s.Program, append([]string{"--config", s.Config()}, args...)...)
}

// Page starts `thinsnap page`, with its log in dir, and returns the address that it prints.
func (s *Thinsnap) Page(dir string) (p *Process, url string, err error) {
	cmd := exec.Command(s.Program, "--config", s.Config(), "page")
	p, err = Start(cmd, dir, "page", func() bool {
		printed, err := os.ReadFile(filepath.Join(dir, "page.log"))
		url = strings.TrimSuffix(string(printed), "\n")
		return err == nil && strings.HasSuffix(string(printed), "/\n")
	})
	return p, url, err
}

// Dial connects a client like containerd's to the daemon.
func (s *Thinsnap) Dial() (*grpc.ClientConn, snapshots.Snapshotter, error) { return s.dial(s.Proxy()) }

// DialAs is Dial for one of Clients.
func (s *Thinsnap) DialAs(client string) (*grpc.ClientConn, snapshots.Snapshotter, error) {
	return s.dial(s.ProxyOf(client))
}

func (*Thinsnap) dial(p Proxy) (*grpc.ClientConn, snapshots.Snapshotter, error) {
	conn, err := dial(p.Address)
	if err != nil {
		return nil, nil, err
	}
	return conn, Snapshotter(conn), nil
}

// Snapshotter returns the client of thinsnap over a connection to thinsnap itself or to containerd.
func Snapshotter(conn *grpc.ClientConn) snapshots.Snapshotter {
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), ThinsnapName)
}

// Admin returns a client of the daemon's admin socket.
func (s *Thinsnap) Admin() *admin.Client { return admin.NewClient(s.adminAddress()) }
