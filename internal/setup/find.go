package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// A Kind is the way in which a containerd is started.
type Kind string

const (
	// System is the machine's containerd, with its own unit.
	System Kind = "containerd"
	// K3s is the containerd of k3s or RKE2, which write its configuration from a template at each
	// start.
	K3s Kind = "k3s"
	// Docker is a containerd that dockerd starts, with a configuration that dockerd writes.
	Docker Kind = "docker"
)

// A Containerd is a containerd of this machine. It need not run.
type Containerd struct {
	Kind Kind
	// Executable is the absolute path of the program. It may be missing.
	Executable string
	// Config is the absolute path of its configuration. Without the file, containerd uses its
	// defaults. It is "" if the path is only in the environment of an inactive unit.
	Config string
	// Address is the path of its socket, from the command line or the configuration.
	Address string
	// PID is its process, or 0 if it does not run.
	PID int
	// Unit is its systemd unit, such as "k3s.service", or "".
	Unit string
	// Source is where the options were found: "process 812", a unit's file, or "the defaults".
	Source string
}

// DefaultConfig is containerd's default (its defaults package).
const DefaultConfig = "/etc/containerd/config.toml"

// DefaultAddress is containerd's default (its defaults package).
const DefaultAddress = "/run/containerd/containerd.sock"

const (
	programName = "containerd"
	systemUnit  = "containerd.service"
)

// Find returns the containerds of this machine: those that run as root, and the installed ones of
// the system, k3s and RKE2 that do not run. It executes nothing. Errors are those of the operating
// system.
func Find() ([]Containerd, error) { return host{"/"}.find() }

// Only returns the containerd of the given kind. It fails with errdefs.ErrNotFound if the machine
// has none, and with errdefs.ErrFailedPrecondition if it has several.
func Only(all []Containerd, kind Kind) (Containerd, error) {
	var of []Containerd
	for _, c := range all {
		if c.Kind == kind {
			of = append(of, c)
		}
	}
	switch len(of) {
	case 0:
		return Containerd{}, fmt.Errorf("no containerd of the kind %q: there is no such process, unit or program: "+
			"install it, or name its configuration with --containerd-config: %w", kind, errdefs.ErrNotFound)
	case 1:
		return of[0], nil
	}
	configs := make([]string, len(of))
	for i, c := range of {
		configs[i] = fmt.Sprintf("%s (%s)", c.Config, c.Source)
	}
	return Containerd{}, fmt.Errorf("%d containerds of the kind %q: %s: name the configuration of one with "+
		"--containerd-config: %w", len(of), kind, strings.Join(configs, ", "), errdefs.ErrFailedPrecondition)
}

// host is a machine, given by its root directory. Tests replace it.
type host struct{ root string }

func (h host) path(name string) string { return filepath.Join(h.root, name) }

func (h host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

func (h host) find() ([]Containerd, error) {
	found, err := h.processes()
	if err != nil {
		return nil, err
	}
	isKind := func(kind Kind) bool {
		return slices.ContainsFunc(found, func(c Containerd) bool { return c.Kind == kind })
	}
	if !isKind(System) {
		c, err := h.stopped()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			found = append(found, c)
		}
	}
	if !isKind(K3s) {
		found = append(found, h.stoppedK3s()...)
	}
	for i := range found {
		h.setAddress(&found[i])
	}
	return found, nil
}

// stopped returns the system's containerd of a machine on which it does not run. It fails with
// fs.ErrNotExist if there is none.
func (h host) stopped() (Containerd, error) {
	if args, file, err := h.execStart(systemUnit); err == nil {
		c := Containerd{Kind: System, Executable: args[0], Unit: systemUnit, Source: file}
		c.parse(args, "/")
		return c, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Containerd{}, err
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if name := filepath.Join(dir, programName); h.exists(name) {
			return Containerd{Kind: System, Executable: name, Config: DefaultConfig, Source: "the defaults"}, nil
		}
	}
	return Containerd{}, fs.ErrNotExist
}

// stoppedK3s returns the containerds of k3s and RKE2 of a machine on which neither runs.
func (h host) stoppedK3s() []Containerd {
	var found []Containerd
	for _, name := range []string{"k3s", "rke2"} {
		dir := filepath.Join("/var/lib/rancher", name)
		exe := filepath.Join(dir, "data/current/bin", programName)
		if name == "rke2" {
			exe = filepath.Join(dir, "bin", programName)
		}
		if !h.exists(dir) {
			continue
		}
		c := Containerd{
			Kind: K3s, Executable: exe, Config: filepath.Join(dir, "agent/etc/containerd/config.toml"),
			Address: k3sAddress, Source: dir,
		}
		for _, unit := range []string{name, name + "-server", name + "-agent"} {
			if _, _, err := h.execStart(unit + ".service"); err == nil {
				c.Unit = unit + ".service"
			}
		}
		found = append(found, c)
	}
	return found
}

// k3sAddress is the socket of k3s and RKE2 (k3s: pkg/agent/config, getConfig).
const k3sAddress = "/run/k3s/containerd/containerd.sock"

// parse reads the options of a command line. urfave/cli accepts one dash or two.
func (c *Containerd) parse(args []string, dir string) {
	c.Config = DefaultConfig
	if slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "$") }) {
		c.Config = ""
	}
	for name, value := range options(args, map[string]string{
		"config": "config", "c": "config", "address": "address", "a": "address",
	}) {
		to := &c.Config
		if name == "address" {
			to = &c.Address
		}
		switch {
		case strings.Contains(value, "$"):
			value = ""
		case !filepath.IsAbs(value):
			value = filepath.Join(dir, value)
		}
		*to = value
	}
}

// options returns the values of the named options of a command line, in order. Options have one
// dash or two.
func options(args []string, names map[string]string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := 1; i < len(args); i++ {
			option, value, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
			name := names[option]
			if !strings.HasPrefix(args[i], "-") || name == "" {
				continue
			}
			if !joined && i+1 < len(args) {
				i++
				value = args[i]
			}
			if !yield(name, value) {
				return
			}
		}
	}
}

// setAddress reads the socket's path from the configuration, unless the command line has it.
func (h host) setAddress(c *Containerd) {
	if c.Address != "" {
		return
	}
	c.Address = DefaultAddress
	d := onDisk()
	if h.root != "/" {
		d = disk{
			read: func(path string, most int) ([]byte, error) { return readBounded(h.path(path), most) },
			glob: func(string) ([]string, error) { return nil, nil },
		}
	}
	files, err := d.readAll(c.Config)
	if err != nil {
		return
	}
	for _, f := range files {
		if f.GRPC.Address != "" {
			c.Address = f.GRPC.Address
		}
		grpc, _ := f.Plugins["io.containerd.server.v1.grpc"].(map[string]any)
		if address, _ := grpc["address"].(string); address != "" {
			c.Address = address
		}
	}
}
