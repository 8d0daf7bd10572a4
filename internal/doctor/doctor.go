// Package doctor checks whether this machine can run a container on thinsnap, and gives a remedy
// for each obstacle. It needs neither a daemon nor containerd, changes nothing, and ends within a
// limited time, even if a device or a mount hangs.
//
// Each file has one group of checks. A check reads a host, which tests replace, and returns a
// finding.
package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/internal/config"
)

// Status is the outcome of a check.
type Status string

const (
	// OK means no obstacle.
	OK Status = "ok"
	// Warning means that containers run, but that trouble is ahead.
	Warning Status = "warning"
	// Problem means that containers do not run.
	Problem Status = "problem"
	// Skipped means that the check does not apply here, or is not possible.
	Skipped Status = "skipped"
)

// Result is the result of one check.
type Result struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Seen describes the finding, in one or more lines.
	Seen string `json:"seen"`
	// Remedy has lines for a shell, some of which are comments. Only problems and warnings have a
	// remedy.
	Remedy []string `json:"remedy,omitempty"`
}

// Report has the results of all checks, in a fixed order.
type Report struct {
	Checks   []Result `json:"checks"`
	Problems int      `json:"problems"`
	Warnings int      `json:"warnings"`
}

// Options select the installation to check.
type Options struct {
	// File is the path of thinsnap's configuration. It may be missing if Optional is set.
	File     string
	Optional bool
	// AdminAddress replaces the configuration's address, unless it is empty.
	AdminAddress string
	// Version is the version of this program.
	Version string
}

// patience limits a check. Programs are ended a little earlier.
const patience = 20 * time.Second

// Run runs all checks in parallel, and returns their results in the order of the report. It takes
// at most 20 seconds: a check that hangs is abandoned, and is a problem.
func Run(ctx context.Context, o Options) Report {
	return run(ctx, newMachine(o, thisHost()), checks(), patience)
}

func run(ctx context.Context, m *machine, all []check, patience time.Duration) Report {
	limited, cancel := context.WithTimeout(ctx, patience*3/4)
	defer cancel()
	m.start(limited)
	return ask(limited, m, all, patience)
}

// ask runs the given checks on a machine, and waits for patience.
func ask(ctx context.Context, m *machine, all []check, patience time.Duration) Report {
	results := make([]Result, len(all))
	var wait sync.WaitGroup
	for i, c := range all {
		wait.Go(func() { results[i] = c.result(ctx, m, patience) })
	}
	wait.Wait()
	report := Report{Checks: results}
	for _, r := range results {
		switch r.Status {
		case Problem:
			report.Problems++
		case Warning:
			report.Warnings++
		}
	}
	return report
}

type check struct {
	name string
	// root is true if only the root user can make the check.
	root bool
	look func(ctx context.Context, m *machine) finding
}

type finding struct {
	status Status
	seen   string
	remedy []string
}

func ok(format string, args ...any) finding {
	return finding{status: OK, seen: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) finding {
	return finding{status: Skipped, seen: fmt.Sprintf(format, args...)}
}

func warning(seen string, remedy ...string) finding { return finding{Warning, seen, remedy} }

func problem(seen string, remedy ...string) finding { return finding{Problem, seen, remedy} }

// checks returns all checks in the order of the report: from the machine up to the container.
func checks() []check {
	return []check{
		{name: "user", look: lookAtUser},
		{name: "configuration", look: lookAtConfiguration},
		{name: "kernel", look: lookAtKernel},
		{name: "device-mapper", root: true, look: lookAtDeviceMapper},
		{name: "loop-devices", look: lookAtLoopDevices},
		{name: "programs", look: lookAtPrograms},
		{name: "udev", look: lookAtUdev},
		{name: "lvm", root: true, look: lookAtLVM},
		{name: "root", root: true, look: lookAtRoot},
		{name: "root-file-system", root: true, look: lookAtRootFileSystem},
		{name: "new-pool", root: true, look: lookAtNewPool},
		{name: "unit", look: lookAtUnit},
		{name: "unit-devices", root: true, look: lookAtUnitDevices},
		{name: "socket-unit", look: lookAtSocketUnit},
		{name: "socket", root: true, look: lookAtSocket},
		{name: "daemon", root: true, look: lookAtDaemon},
		{name: "pool", root: true, look: lookAtPool},
		{name: "client", root: true, look: lookAtClient},
		{name: "containerd", root: true, look: lookAtContainerd},
		{name: "containerd-configuration", root: true, look: lookAtProxy},
		{name: "unpacking", root: true, look: lookAtUnpacking},
		{name: "runtimes", root: true, look: lookAtRuntimes},
		{name: "connection", root: true, look: lookAtConnection},
		{name: "mounts", root: true, look: lookAtMounts},
		{name: "selinux", look: lookAtSELinux},
	}
}

func (c check) result(ctx context.Context, m *machine, patience time.Duration) Result {
	if c.root && m.host.uid != 0 {
		return Result{Name: c.name, Status: Skipped, Seen: "only root can check this"}
	}
	found := make(chan finding, 1)
	go func() { found <- c.look(ctx, m) }()
	var f finding
	select {
	case f = <-found:
	case <-time.After(patience):
		f = problem(fmt.Sprintf("no answer after %v: a device, a mount or a daemon hangs", patience),
			"dmesg | tail -n 30", "ps -eo pid,stat,wchan:32,args | awk '$2 ~ /^D/'")
	}
	return Result{Name: c.name, Status: f.status, Seen: strings.TrimSpace(f.seen), Remedy: f.remedy}
}

// machine is the state that the checks share. Each part is read once.
type machine struct {
	Options
	host host

	loaded      func() loaded
	unit        func() (unitState, error)
	socketUnit  func() (unitState, error)
	daemon      func() daemonState
	containerds func() ([]containerdState, error)
}

func newMachine(o Options, h host) *machine { return &machine{Options: o, host: h} }

// start prepares the parts, which are read within ctx.
func (m *machine) start(ctx context.Context) {
	m.loaded = sync.OnceValue(m.load)
	m.unit = sync.OnceValues(func() (unitState, error) { return m.host.readUnit(ctx, serviceUnit) })
	m.socketUnit = sync.OnceValues(func() (unitState, error) { return m.host.readUnit(ctx, socketUnit) })
	m.containerds = sync.OnceValues(func() ([]containerdState, error) { return m.host.containerds(ctx) })
	m.daemon = sync.OnceValue(func() daemonState { return m.askDaemon(ctx) })
}

// config returns the readable part of the configuration, with defaults for the rest.
func (m *machine) config() config.Config { return m.loaded().config }
