// Package doctor looks for what stands between this machine and a container on thinsnap. It needs neither a daemon
// nor containerd, changes nothing, and ends in a bounded time, also if a device or a mount hangs.
//
// Each file has one group of checks. A check reads a host, which tests replace, and returns what it has seen.
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
	// OK is for what is as it has to be.
	OK Status = "ok"
	// Warning is for what does not keep a container from running, but will cause trouble.
	Warning Status = "warning"
	// Problem is for what keeps a container from running.
	Problem Status = "problem"
	// Skipped is for what does not apply here, or cannot be checked.
	Skipped Status = "skipped"
)

// Result is what one check has found.
type Result struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Seen is what was found, in one or more lines.
	Seen string `json:"seen"`
	// Remedy are lines for a shell; some are comments. Only problems and warnings have it.
	Remedy []string `json:"remedy,omitempty"`
}

// Report is what all checks have found, in a fixed order.
type Report struct {
	Checks   []Result `json:"checks"`
	Problems int      `json:"problems"`
	Warnings int      `json:"warnings"`
}

// Options are what is checked.
type Options struct {
	// File is the path of thinsnap's configuration. It may be missing if Optional is set.
	File     string
	Optional bool
	// AdminAddress replaces that of the configuration, unless it is empty.
	AdminAddress string
	// Version is that of this program.
	Version string
}

// patience is how long a check may take before it is given up. Programs are ended after most of it.
const patience = 20 * time.Second

// Run runs all checks at once, and returns their results in the order of the report. It takes at most 20 seconds; a
// check that hangs is left behind, and is a problem.
func Run(ctx context.Context, o Options) Report {
	return run(ctx, newMachine(o, thisHost()), checks(), patience)
}

func run(ctx context.Context, m *machine, all []check, patience time.Duration) Report {
	limited, cancel := context.WithTimeout(ctx, patience*3/4)
	defer cancel()
	m.start(limited)
	return ask(limited, m, all, patience)
}

// ask has all checks look at a machine, and waits for patience.
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

// check is one question to the machine.
type check struct {
	name string
	// root is true if only root can find out.
	root bool
	look func(ctx context.Context, m *machine) finding
}

// finding is the answer.
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
		return Result{Name: c.name, Status: Skipped, Seen: "only root can find out"}
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

// machine is what the checks share. Each part is read once.
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

// start prepares what is read once, within ctx.
func (m *machine) start(ctx context.Context) {
	m.loaded = sync.OnceValue(m.load)
	m.unit = sync.OnceValues(func() (unitState, error) { return m.host.readUnit(ctx, serviceUnit) })
	m.socketUnit = sync.OnceValues(func() (unitState, error) { return m.host.readUnit(ctx, socketUnit) })
	m.containerds = sync.OnceValues(func() ([]containerdState, error) { return m.host.containerds(ctx) })
	m.daemon = sync.OnceValue(func() daemonState { return m.askDaemon(ctx) })
}

// config returns the configuration, as far as it can be read, with the defaults for the rest.
func (m *machine) config() config.Config { return m.loaded().config }
