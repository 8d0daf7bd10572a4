package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/disk"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

const (
	// programPath is what the units execute.
	programPath = "/usr/local/bin/thinsnap"
	unitDir     = "/etc/systemd/system"
	service     = "thinsnap.service"
	socket      = "thinsnap.socket"
	// openTime is how long a pool may take to open.
	openTime = 3 * time.Minute
)

// packaged returns files of thinsnap's package, which no installer writes.
func packaged() []string {
	return []string{"/usr/bin/thinsnap", "/usr/lib/systemd/system/" + service, "/lib/systemd/system/" + service}
}

// Machine is the machine to change. The zero value is this one.
type Machine struct {
	// Root is the directory of its files, "/" if empty.
	Root string
	// Run executes a command on it; nil is for what is executed here.
	Run func(ctx context.Context, args ...string) error
	// Containerd returns its containerd of a kind; nil looks for it here.
	Containerd func(kind setup.Kind) (Containerd, error)
	// InUse returns the devices that are in use while the daemon does not answer; nil asks this kernel.
	InUse func() ([]string, error)
	// Admin answers for the daemon; nil asks it on the configuration's socket.
	Admin interface {
		Pool(ctx context.Context) (admin.Pool, error)
		Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error)
		Owners(ctx context.Context) (admin.Owners, error)
	}
}

// Containerd is a containerd whose configuration may change.
type Containerd struct {
	Unit string // "" if it is in none, and has to be restarted by hand
	// Dump returns what it makes of its configuration.
	Dump func(ctx context.Context) (setup.Dump, error)
}

func (m *Machine) path(name string) string { return filepath.Join(cmp.Or(m.Root, "/"), name) }

// Files are what Install writes beside the program.
type Files struct {
	Program, Service, Socket []byte
	Config                   []byte // of thinsnap
}

func (f Files) list(cfg config.Config) []journal.File {
	all := []journal.File{
		{Path: programPath, After: f.Program, Mode: 0o755},
		{Path: config.DefaultPath, After: f.Config},
		{Path: filepath.Join(unitDir, service), After: f.Service},
		{Path: filepath.Join(unitDir, socket), After: f.Socket},
	}
	if cfg.Pool.Mode == config.ModeDirectLVM {
		text := "# The unit may use no disk otherwise.\n" + disk.DropInText(cfg.Pool.DirectLVM.Device)
		all = append(all, journal.File{Path: filepath.Join(unitDir, service+".d", "disk.conf"), After: []byte(text)})
	}
	return all
}

// Install writes the files that are missing or of another version, enables and starts the units, waits
// until the pool takes snapshots, and then runs `thinsnap setup` with some arguments for a containerd, which it
// restarts if that changed its configuration. It can be repeated at any time. Errors are InvalidArgument
// for the configuration, and FailedPrecondition if the package is installed, if one of the files is not
// the installer's, or if the pool refuses new snapshots.
func (m *Machine) Install(ctx context.Context, files Files, kind setup.Kind, args ...string) error {
	cfg, err := config.Parse(files.Config)
	if err != nil {
		return err
	}
	if err := m.requireNoPackage(); err != nil {
		return err
	}
	r, _, err := m.readRecord()
	if err != nil {
		return err
	}
	changes, err := m.changes(r, files.list(cfg))
	if err != nil {
		return err
	}
	if err := m.write(ctx, &r, changes); err != nil {
		return err
	}
	if err := m.startUnits(ctx, &r); err != nil {
		return err
	}
	if err := m.awaitPool(ctx, cfg); err != nil {
		return err
	}
	return m.configure(ctx, &r, kind, append([]string{programPath, "setup", string(kind)}, args...))
}

// Configure runs only `thinsnap setup`, by this program, for a daemon in a container, whose configuration it
// checks. Errors are those of Install; a pool that LVM makes is FailedPrecondition.
func (m *Machine) Configure(ctx context.Context, text []byte, kind setup.Kind, args ...string) error {
	cfg, err := config.Parse(text)
	if err != nil {
		return err
	}
	if cfg.Pool.Mode == config.ModeDirectLVM {
		return fmt.Errorf("mode direct-lvm does not work in a container: LVM's locks, its list of devices and its profiles "+
			"are files of the machine (/run/lock/lvm, /etc/lvm): use the installer: %w", errdefs.ErrFailedPrecondition)
	}
	r, _, err := m.readRecord()
	if err != nil {
		return err
	}
	return m.configure(ctx, &r, kind, append([]string{self, "setup", string(kind)}, args...))
}

// requireNoPackage fails if the package is installed.
func (m *Machine) requireNoPackage() error {
	for _, path := range packaged() {
		if _, err := os.Lstat(m.path(path)); err == nil {
			return fmt.Errorf("thinsnap's package is installed on this machine (%s): keep it, and take the machine's "+
				"label away, or remove the package first, which keeps the data: %w", path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// write makes changes. If there are any, the record says first that the daemon has to be restarted.
func (m *Machine) write(ctx context.Context, r *record, changes []journal.File) error {
	r.RestartDaemon = r.RestartDaemon || len(changes) > 0
	if err := m.writeRecord(*r); err != nil {
		return err
	}
	for _, f := range changes {
		log.G(ctx).WithField("file", f.Path).Info("writing")
	}
	return r.files.Apply(changes, func() error { return nil })
}

// startUnits enables and starts the units. It restarts the daemon if its files have changed.
func (m *Machine) startUnits(ctx context.Context, r *record) error {
	if err := m.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	if err := m.run(ctx, "systemctl", "enable", socket, service); err != nil {
		return err
	}
	if !r.RestartDaemon {
		return m.run(ctx, "systemctl", "start", service)
	}
	if err := m.run(ctx, "systemctl", "restart", service); err != nil {
		return err
	}
	r.RestartDaemon = false
	return m.writeRecord(*r)
}

// awaitPool waits until the daemon's pool takes new snapshots: containerd must not be told before.
func (m *Machine) awaitPool(ctx context.Context, cfg config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	client := m.Admin
	if client == nil {
		client = admin.NewClient(cfg.AdminAddress)
	}
	for {
		pool, err := client.Pool(ctx)
		if err == nil && pool.Refusal == "" {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("the pool refuses new snapshots: %s: %w", pool.Refusal, errdefs.ErrFailedPrecondition)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("containerd is left as it is: %w", err)
		}
	}
}

// configure executes a command that may change containerd's configuration, and restarts containerd if it
// did. If that is interrupted, the next call makes up for it.
func (m *Machine) configure(ctx context.Context, r *record, kind setup.Kind, command []string) error {
	find := m.Containerd
	if find == nil {
		find = findContainerd
	}
	c, err := find(kind)
	if err != nil {
		return err
	}
	before, err := c.Dump(ctx)
	if err != nil {
		return err
	}
	isPending := r.RestartUnit != ""
	r.RestartUnit = cmp.Or(c.Unit, "containerd")
	if err := m.writeRecord(*r); err != nil {
		return err
	}
	if err := m.run(ctx, command...); err != nil {
		return err
	}
	after, err := c.Dump(ctx)
	if err != nil {
		return err
	}
	if isPending || !reflect.DeepEqual(before, after) {
		if c.Unit == "" {
			return fmt.Errorf("containerd's configuration has changed, but systemd does not run containerd: restart "+
				"it: %w", errdefs.ErrFailedPrecondition)
		}
		if err := m.run(ctx, "systemctl", "restart", c.Unit); err != nil {
			return err
		}
	}
	r.RestartUnit = ""
	return m.writeRecord(*r)
}

func findContainerd(kind setup.Kind) (Containerd, error) {
	all, err := setup.Find()
	if err != nil {
		return Containerd{}, err
	}
	c, err := setup.Only(all, kind)
	dump := func(ctx context.Context) (setup.Dump, error) { return c.Dump(ctx, c.Config) }
	return Containerd{Unit: c.Unit, Dump: dump}, err
}

// run executes a command, and passes on what it prints.
func (m *Machine) run(ctx context.Context, args ...string) error {
	log.G(ctx).WithField("command", strings.Join(args, " ")).Info("executing")
	if m.Run != nil {
		return m.Run(ctx, args...)
	}
	command := program.Command{Args: slices.Clone(args), Line: strings.Join(args, " ")}
	if filepath.IsAbs(args[0]) {
		ctx = program.WithDirectories(ctx, filepath.Dir(args[0]))
		command.Args[0] = filepath.Base(args[0])
	}
	out, err := program.Run(ctx, command)
	if _, printErr := fmt.Fprintf(os.Stderr, "%s%s", out.Out, out.Err); printErr != nil {
		return errors.Join(err, printErr)
	}
	return err
}
