package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/thinsnap/thinsnap/integration/vm"
)

var errHelp = flag.ErrHelp

type options struct {
	config     vm.Config
	command    vm.Command
	direct     string
	printWhere bool
	timeout    time.Duration
}

func parse(args []string) (options, error) {
	var (
		opts    options
		console string
		env     []string
		f       = flag.NewFlagSet("vmrun", flag.ContinueOnError)
	)
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "usage: vmrun [flags] PROGRAM [ARGS...]\n\n"+
			"Runs PROGRAM as root with device-mapper: on this machine or in a virtual one.\n\n")
		f.PrintDefaults()
	}
	f.StringVar(&opts.direct, "direct", "auto",
		"run on the host itself: auto (if it has root and dm-thin), always or never; the variable THINSNAP_VM=never|always "+
			"(always or never a guest) takes precedence")
	f.BoolVar(&opts.printWhere, "where", false, "only print where PROGRAM would run, \"host\" or \"guest\", and why")
	f.DurationVar(&opts.timeout, "timeout", 30*time.Minute,
		"kill the program and the guest after this time")
	f.IntVar(&opts.config.MemoryMiB, "memory", 0, "the guest's memory in MiB (default: 4096, at most half of the host's)")
	f.IntVar(&opts.config.CPUs, "cpus", 0, "the guest's processors (default: 2; in user mode 1)")
	f.StringVar(&opts.config.Accel, "accel", "",
		"kvm, tcg, or uml for a user-mode kernel (default: kvm if a guest boots on it)")
	f.BoolVar(&opts.config.Udev, "udev", false, "run systemd-udevd in the guest")
	f.StringVar(&console, "console", "", "copy the guest's console to this file (\"-\": standard error)")
	f.Func("disk", "FILE[:SIZE], a raw image for the program to use; made, sparse, if missing and SIZE is given. The "+
		"program finds the device in THINSNAP_DISK0, THINSNAP_DISK1, … (repeatable)", func(s string) error {
		d, err := parseDisk(s)
		opts.config.Disks = append(opts.config.Disks, d)
		return err
	})
	f.Func("share", "host directory that the guest may write to, at the same path (repeatable)", func(s string) error {
		opts.config.Shares = append(opts.config.Shares, s)
		return nil
	})
	f.Func("env", "NAME[=VALUE] for the program, beyond PATH, HOME, LANG, LC_*, TERM, TZ, GO*, CI, IMAGE, "+
		"XDG_CACHE_HOME and THINSNAP_* (repeatable)", func(s string) error {
		env = append(env, s)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return opts, err
	}
	if f.NArg() == 0 && !opts.printWhere {
		return opts, errors.New("no program given; see vmrun -help")
	}
	if !slices.Contains([]string{"auto", "always", "never"}, opts.direct) {
		return opts, fmt.Errorf("-direct is %q: it may be auto, always or never", opts.direct)
	}
	if opts.printWhere {
		return opts, nil
	}
	opts.command = vm.Command{Args: f.Args(), Env: passEnv(os.Environ(), env), Stdout: os.Stdout, Stderr: os.Stderr}
	return opts, opts.complete(console)
}

// complete fills in options from the environment.
func (o *options) complete(console string) error {
	var err error
	if o.command.Dir, err = os.Getwd(); err != nil {
		return err
	}
	if o.config.Agent, err = os.Executable(); err != nil {
		return err
	}
	// The program is searched for in the PATH of the user, which may differ from the guest's.
	if path, err := exec.LookPath(o.command.Args[0]); err == nil {
		if o.command.Args[0], err = filepath.Abs(path); err != nil {
			return err
		}
	}
	switch console {
	case "":
	case "-":
		o.config.Console = os.Stderr
	default:
		if o.config.Console, err = os.Create(console); err != nil {
			return err
		}
	}
	return nil
}

// where reports whether the program runs on the host, and why.
func (o *options) where() (direct bool, reason string, err error) {
	direct, reason, err = vm.Prefer()
	if os.Getenv("THINSNAP_VM") == "" && o.direct != "auto" {
		return o.direct == "always", "-direct=" + o.direct, err
	}
	return direct, reason, err
}

func parseDisk(s string) (vm.Disk, error) {
	file, size, ok := s, "", false
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		file, size, ok = s[:i], s[i+1:], true
	}
	if file == "" {
		return vm.Disk{}, errors.New("no file named")
	}
	path, err := filepath.Abs(file)
	if err != nil || !ok {
		return vm.Disk{Path: path}, err
	}
	bytes, err := units.RAMInBytes(size)
	return vm.Disk{Path: path, Size: bytes}, err
}

// passEnv returns the host's variables that are passed to the program.
func passEnv(host, wanted []string) []string {
	var env []string
	for _, e := range host {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == "THINSNAP_VM", name == "THINSNAP_KERNEL":
		case name == "PATH":
			env = append(env, "PATH="+value+":/usr/local/sbin:/usr/sbin:/sbin")
		case slices.Contains([]string{"CI", "HOME", "IMAGE", "LANG", "TERM", "TZ", "XDG_CACHE_HOME"}, name),
			strings.HasPrefix(name, "THINSNAP_"), strings.HasPrefix(name, "GO"), strings.HasPrefix(name, "LC_"),
			slices.Contains(wanted, name):
			env = append(env, e)
		}
	}
	for _, e := range wanted {
		if strings.Contains(e, "=") {
			env = append(env, e)
		}
	}
	return env
}
