package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/kernel"
)

// host is the machine to check. Tests replace it.
type host struct {
	// root is the directory that holds /dev, /etc, /lib, /proc, /run, /sys and /usr.
	root string
	// uid is the user's id, and release the kernel's release.
	uid     int
	release string
	// run runs a program, and returns its standard output.
	run func(ctx context.Context, args ...string) (string, error)
	// installed reports whether a program is found.
	installed func(name string) bool
	// targets returns the versions of the kernel's target types. It needs the control node.
	targets func() (map[string]devmapper.Version, error)
	// isBlock returns the device number of a block device. It returns false for other files.
	isBlock func(path string) (number uint64, is bool)
	// statfs reads the file system of a path on this machine.
	statfs      func(path string, st *unix.Statfs_t) error
	containerds func(ctx context.Context) ([]containerdState, error)
	// groupDisks is pool.GroupDisks.
	groupDisks func(ctx context.Context, name string) (disks []string, missing bool, err error)
}

// thisHost returns the machine that this program runs on.
func thisHost() host {
	release, _ := kernel.Release() // the kernel's check reports an unknown release
	return host{
		root: "/", uid: os.Geteuid(), release: release, targets: targets, isBlock: blockNumber, statfs: unix.Statfs,
		containerds: findContainerds, groupDisks: pool.GroupDisks,
		run: func(ctx context.Context, args ...string) (string, error) {
			command := program.Command{Args: args, Env: []string{"LVM_SUPPRESS_FD_WARNINGS=1"}}
			if !devmapper.UdevRuns() {
				command.Env = append(command.Env, "DM_DISABLE_UDEV=1") // else libdevmapper waits for udevd
			}
			out, err := program.Run(ctx, command)
			return string(out.Out), err
		},
		installed: func(name string) bool {
			_, err := program.Find(context.Background(), name)
			return err == nil
		},
	}
}

func targets() (_ map[string]devmapper.Version, err error) {
	control, err := devmapper.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	return control.TargetVersions()
}

func (h host) path(name string) string { return filepath.Join(h.root, name) }

func (h host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

// read returns the text of a file, or "" if it is unreadable.
func (h host) read(name string) string {
	text, _ := os.ReadFile(h.path(name))
	return strings.TrimSpace(string(text))
}

// systemd reports whether systemd is the init (sd_booted(3)).
func (h host) systemd() bool { return h.exists("/run/systemd/system") }

// hasFields reports whether a file has a line that begins with these fields.
func (h host) hasFields(name string, fields ...string) bool {
	for line := range strings.Lines(h.read(name)) {
		if strings.HasPrefix(strings.Join(strings.Fields(line), " ")+" ", strings.Join(fields, " ")+" ") {
			return true
		}
	}
	return false
}

// family is a family of distributions that share package names.
type family int

const (
	debian family = iota
	fedora
	otherFamily
)

// family reads os-release(5).
func (h host) family() family {
	for line := range strings.Lines(h.read("/etc/os-release")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name != "ID" && name != "ID_LIKE" {
			continue
		}
		for _, id := range strings.Fields(strings.Trim(value, `"'`)) {
			switch id {
			case "debian", "ubuntu":
				return debian
			case "fedora", "rhel", "centos":
				return fedora
			}
		}
	}
	return otherFamily
}

// pkg is a package, by its name in each family.
type pkg struct{ debian, fedora string }

// install returns the command that installs packages.
func (h host) install(packages ...pkg) string {
	var names []string
	seen := make(map[pkg]bool)
	for _, p := range packages {
		if seen[p] {
			continue
		}
		seen[p] = true
		if h.family() == fedora {
			names = append(names, p.fedora)
		} else {
			names = append(names, p.debian)
		}
	}
	list := strings.Join(names, " ")
	switch h.family() {
	case debian:
		return "apt-get install --yes " + list
	case fedora:
		return "dnf install --assumeyes " + list
	}
	return "# install with your distribution's tool (the names are Debian's): " + list
}

// blockNumber returns the device number of a block device. It returns false for other files.
func blockNumber(path string) (number uint64, is bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}
