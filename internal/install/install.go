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
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/disk"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

const (
	// programPath is the program that the units execute.
	programPath = "/usr/local/bin/thinsnap"
	unitDir     = "/etc/systemd/system"
	service     = "thinsnap.service"
	socket      = "thinsnap.socket"
	// openTime limits the wait for the pool.
	openTime = 3 * time.Minute
)

// packaged returns files that thinsnap's package installs, and Install does not.
func packaged() []string {
	return []string{"/usr/bin/thinsnap", "/usr/lib/systemd/system/" + service, "/lib/systemd/system/" + service}
}

// Machine is the machine to change. The zero value is this one.
type Machine struct {
	// Root is the root directory of the machine's files, "/" if empty.
	Root string
	// Run executes a command on the machine; nil executes it here.
	Run func(ctx context.Context, args ...string) error
	// Containerd returns the machine's containerd of the given kind; nil searches here.
	Containerd func(kind setup.Kind) (Containerd, error)
	// InUse returns the devices in use, if the daemon does not answer; nil reads this kernel's.
	InUse func() ([]string, error)
	// Admin replaces the daemon's admin client; nil uses the configuration's socket.
	Admin interface {
		Pool(ctx context.Context) (admin.Pool, error)
		Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error)
		Owners(ctx context.Context) (admin.Owners, error)
	}
}

// Containerd is a containerd whose configuration may change.
type Containerd struct {
	Unit string // "" if it has no unit, and must be restarted by hand
	// Process is the running containerd, or zero.
	Process clients.Process
	// Dump returns containerd's effective configuration.
	Dump func(ctx context.Context) (setup.Dump, error)
}

func (m *Machine) path(name string) string { return filepath.Join(cmp.Or(m.Root, "/"), name) }

// Files has the contents of the files that Install writes.
type Files struct {
	Program, Service, Socket []byte
	Config                   []byte // thinsnap's configuration
}

func (f Files) list(cfg config.Config) []journal.File {
	all := []journal.File{
		{Path: programPath, After: f.Program, Mode: 0o755},
		{Path: config.DefaultPath, After: f.Config},
		{Path: filepath.Join(unitDir, service), After: f.Service},
		{Path: filepath.Join(unitDir, socket), After: f.Socket},
	}
	if cfg.Pool.Mode == config.ModeDirectLVM {
		text := "# Without this drop-in, the unit cannot use the pool's disk.\n" + disk.DropInText(cfg.Pool.DirectLVM.Device)
		all = append(all, journal.File{Path: filepath.Join(unitDir, service+".d", "disk.conf"), After: []byte(text)})
	}
	return all
}

// Install writes missing files and those of another version, enables and starts the units, and
// waits until the pool accepts snapshots. Then it runs `thinsnap setup` with args for a containerd,
// and restarts that containerd if its configuration changed. Install can be repeated at any time.
//
// It fails with errdefs.ErrInvalidArgument for an invalid configuration, and with
// errdefs.ErrFailedPrecondition if the package is installed, if a file was edited or is not the
// installer's, if the pool refuses new snapshots, or if containerd must be restarted by hand.
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

// Configure only sets up containerd, as Install does, for a daemon in a container. It fails with
// errdefs.ErrInvalidArgument for an invalid configuration, and with errdefs.ErrFailedPrecondition
// for mode "direct-lvm" or if containerd must be restarted by hand.
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

func (m *Machine) requireNoPackage() error {
	for _, path := range packaged() {
		if _, err := os.Lstat(m.path(path)); err == nil {
			return fmt.Errorf("thinsnap's package is installed on this machine (%s): remove the package, which "+
				"keeps the data, or remove the node's label: %w", path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// write records that the daemon must be restarted, and then writes the changes.
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

// awaitPool waits until the daemon's pool accepts new snapshots: until then, containerd must not
// use thinsnap.
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

// configure executes a command that may change containerd's configuration, and restarts containerd
// if it did. After an interruption, the next call makes the restart. Without a unit, a needed
// restart must be made by hand: until then, each call fails with errdefs.ErrFailedPrecondition.
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
	isPending := r.isPending(kind, c)
	r.setPending(kind, nil)
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
			return m.requestRestart(r, kind, find)
		}
		if err := m.run(ctx, "systemctl", "restart", c.Unit); err != nil {
			return err
		}
	}
	delete(r.Restarts, kind)
	return m.writeRecord(*r)
}

// requestRestart fails with errdefs.ErrFailedPrecondition. Before that, it finds containerd again,
// and records its process: one that started meanwhile may have read the former configuration.
func (m *Machine) requestRestart(r *record, kind setup.Kind, find func(setup.Kind) (Containerd, error)) error {
	c, err := find(kind)
	if err != nil {
		return err
	}
	r.setPending(kind, &c.Process)
	if err := m.writeRecord(*r); err != nil {
		return err
	}
	return fmt.Errorf("containerd's configuration has changed, but systemd does not run containerd: restart it: %w",
		errdefs.ErrFailedPrecondition)
}

func findContainerd(kind setup.Kind) (Containerd, error) {
	all, err := setup.Find()
	if err != nil {
		return Containerd{}, err
	}
	c, err := setup.Only(all, kind)
	dump := func(ctx context.Context) (setup.Dump, error) { return c.Dump(ctx, c.Config) }
	return Containerd{Unit: c.Unit, Process: clients.FindProcess(c.PID), Dump: dump}, err
}

// run executes a command, and passes its output on.
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
