package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

// killLimit bounds the time in which a guest reports the end of a killed program. An emulated guest on a busy machine
// can need seconds.
const killLimit = 20 * time.Second

// Command is a program to run as root.
type Command struct {
	Args   []string // program and arguments; a program without a slash is searched for in PATH
	Env    []string // NAME=value; wins over the guest's own environment
	Dir    string   // default: /
	Stdout io.Writer
	Stderr io.Writer // one goroutine writes to both, so they may be the same
}

// ExitError is returned for a program that ran and ended with a status other than 0. The status of a program killed by
// a signal is 128 plus the signal's number.
type ExitError struct {
	Program string
	Status  int
}

func (e *ExitError) Error() string { return fmt.Sprintf("%s: exit status %d", e.Program, e.Status) }

// ErrNotStarted is returned for a program that could not be started; the error also wraps os.ErrNotExist if the program
// does not exist.
var ErrNotStarted = errors.New("the program could not be started")

// Process is a command started in a guest.
type Process struct {
	machine *Machine
	id      uint32
	command Command
	ended   chan struct{}
	err     error // valid once ended is closed
}

// Start starts a command without waiting for it.
func (m *Machine) Start(c Command) (*Process, error) {
	if len(c.Args) == 0 {
		return nil, fmt.Errorf("%w: no program named", ErrNotStarted)
	}
	m.mu.Lock()
	if m.processes == nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("run %s: %w", c.Args[0], ErrGuestGone)
	}
	m.nextID++
	p := &Process{machine: m, id: m.nextID, command: c, ended: make(chan struct{})}
	m.processes[p.id] = p
	m.mu.Unlock()
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	err := m.conn.Send(wire.Message{Kind: wire.Exec, ID: p.id, Exec: &wire.ExecParams{Args: c.Args, Env: c.Env, Dir: dir}})
	if err != nil {
		return nil, fmt.Errorf("run %s: %w: %w", c.Args[0], ErrGuestGone, err)
	}
	return p, nil
}

// Run runs a command to its end. If ctx is done first, the program is killed and the error wraps ctx's. If the guest
// does not report the end of the killed program, it is killed, too, and the error also wraps ErrGuestGone.
func (m *Machine) Run(ctx context.Context, c Command) error {
	p, err := m.Start(c)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
		return p.err
	case <-ctx.Done():
	}
	go func() { _ = p.Signal(syscall.SIGKILL) }() // blocks if the guest hangs, which the wait below notices
	select {
	case <-p.ended:
		return fmt.Errorf("run %s: %w", c.Args[0], ctx.Err())
	case <-time.After(killLimit):
		m.Kill()
		return fmt.Errorf("run %s: %w: it did not answer: %w", c.Args[0], ErrGuestGone, ctx.Err())
	}
}

// Wait waits for the program's end. The error is nil, an *ExitError, or wraps ErrNotStarted or
// ErrGuestGone.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Signal sends a signal to the program and its process group. It does nothing to a program that has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	err := p.machine.conn.Send(wire.Message{Kind: wire.Signal, ID: p.id, Signal: int(sig)})
	if err != nil {
		return fmt.Errorf("signal %s: %w: %w", p.command.Args[0], ErrGuestGone, err)
	}
	return nil
}

func (p *Process) handle(msg wire.Message) {
	switch msg.Kind {
	case wire.Stdout:
		write(p.command.Stdout, msg.Data)
	case wire.Stderr:
		write(p.command.Stderr, msg.Data)
	case wire.Exit:
		switch {
		case msg.Status == 127 && msg.Error != "":
			p.fail(fmt.Errorf("%w: %w: %s", ErrNotStarted, os.ErrNotExist, msg.Error))
		case msg.Error != "":
			p.fail(fmt.Errorf("%w: %s", ErrNotStarted, msg.Error))
		case msg.Status != 0:
			p.fail(&ExitError{Program: p.command.Args[0], Status: msg.Status})
		default:
			close(p.ended)
		}
	}
}

func (p *Process) fail(err error) {
	p.err = err
	close(p.ended)
}

// write copies output to w and ignores errors: a closed reader must not stop the program.
func write(w io.Writer, data []byte) {
	if w != nil {
		_, _ = w.Write(data)
	}
}
