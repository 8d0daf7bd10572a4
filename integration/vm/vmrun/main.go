// Command vmrun runs a program as root with device-mapper: on the host itself if it has root and dm-thin, else in a
// virtual machine that has the host's files. It works with `go test -exec vmrun` and by hand.
//
// Its exit status is the program's own, or
//   - 124 if the time limit of the program or of the boot was reached,
//   - 125 if the guest could not be started, or ended before the program,
//   - 126 if the program could not be started,
//   - 127 if the program was not found.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/integration/vm/internal/guest"
)

// Exit statuses of vmrun itself, as in coreutils' timeout and in shells.
const (
	statusTimeout    = 124
	statusOwnFailure = 125
	statusNotStarted = 126
	statusNotFound   = 127
)

func main() {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case guest.InitFlag:
			guest.Init()
		case guest.AgentFlag:
			if err := guest.Agent(); err != nil {
				fmt.Fprintln(os.Stderr, "thinsnap guest:", err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	opts, err := parse(args)
	if errors.Is(err, errHelp) {
		return 0
	}
	if err != nil {
		return fail(err)
	}
	direct, reason, err := opts.where()
	if err != nil {
		return fail(err)
	}
	if opts.printWhere {
		fmt.Println(map[bool]string{true: "host", false: "guest"}[direct] + ": " + reason)
		return 0
	}
	if direct {
		return onHost(opts)
	}
	return inGuest(opts)
}

func onHost(opts options) int {
	host, err := vm.OpenDirect(opts.config.Disks)
	if err != nil {
		return fail(err)
	}
	status := supervise(opts, func() (process, error) { return host.Start(opts.command) })
	if err := host.Close(); err != nil {
		return fail(err)
	}
	return status
}

func inGuest(opts options) int {
	machine, err := vm.Boot(context.Background(), opts.config)
	if err != nil {
		return fail(err)
	}
	status := supervise(opts, func() (process, error) { return machine.Start(opts.command) })
	if status == statusTimeout || status == statusOwnFailure {
		fmt.Fprintf(os.Stderr, "vmrun: the guest's console:\n%s\n", machine.Console())
	}
	if len(opts.config.Disks) == 0 && len(opts.config.Shares) == 0 {
		machine.Kill() // nothing to save
		return status
	}
	if err := machine.Stop(context.Background()); err != nil {
		return fail(err)
	}
	return status
}

// process is a running program, on the host or in a guest.
type process interface {
	Wait() error
	Signal(syscall.Signal) error
}

// supervise runs the program to its end or the time limit, and passes signals on to it.
func supervise(opts options, start func() (process, error)) int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	p, err := start()
	if err != nil {
		return exitStatus(err)
	}
	limit := time.After(opts.timeout)
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	for {
		select {
		case err := <-ended:
			return exitStatus(err)
		case s := <-signals:
			if sig, ok := s.(syscall.Signal); ok {
				go func() { _ = p.Signal(sig) }() // a hung guest must not delay the time limit
			}
		case <-limit:
			_ = fail(fmt.Errorf("%s: still running after %v", opts.command.Args[0], opts.timeout))
			go func() { _ = p.Signal(syscall.SIGKILL) }()
			return statusTimeout
		}
	}
}

func exitStatus(err error) int {
	var exit *vm.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Status
	}
	_ = fail(err)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return statusNotFound
	case errors.Is(err, vm.ErrNotStarted):
		return statusNotStarted
	default:
		return statusOwnFailure
	}
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "vmrun:", err)
	if errors.Is(err, context.DeadlineExceeded) {
		return statusTimeout
	}
	return statusOwnFailure
}
