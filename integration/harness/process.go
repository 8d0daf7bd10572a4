package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// processLimit bounds the start and the end of a program. A guest without KVM is slow, and LVM most of all.
	processLimit = 3 * time.Minute
	// logShown is the number of bytes that are shown from the end of a log.
	logShown = 50000
)

// Process is a program that runs concurrently with its caller.
type Process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended
	err  error         // the program's end; valid once done is closed
}

// Start starts the program with its log in dir/name.log, and waits until ready returns true. With an error, it also
// returns the process if that has started.
func Start(cmd *exec.Cmd, dir, name string, ready func() bool) (*Process, error) {
	p, err := launch(cmd, dir, name, nil)
	if err != nil {
		return nil, err
	}
	return p, p.Await(ready)
}

// launch starts the program. Unless output is given, its output is appended to dir/name.log.
func launch(cmd *exec.Cmd, dir, name string, output *os.File) (*Process, error) {
	p := &Process{name: name, log: filepath.Join(dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	if output == nil {
		log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		output = log
	}
	cmd.Stdout, cmd.Stderr = output, output
	// A terminal's signal is for the caller, which then ends the programs in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Await waits until ready returns true. It fails if the program ends first, or after three minutes.
func (p *Process) Await(ready func() bool) error {
	for deadline := time.Now().Add(processLimit); !ready(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %s", p.name, p.cmd.ProcessState)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s was not ready after %s", p.name, processLimit)
		}
	}
	return nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the program has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// LogFile returns the path of the program's log, which has the output of all starts with the same directory.
func (p *Process) LogFile() string { return p.log }

// Log returns the end of the program's log, with its name.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("log of %s:\n%s", p.name, strings.TrimSpace(string(content[max(0, len(content)-logShown):])))
}

// Stop sends SIGTERM and waits. It fails unless the program was running, and ends in time with status 0.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended before it was stopped: %s", p.name, p.cmd.ProcessState)
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("stop %s: %w", p.name, p.err)
		}
		return nil
	case <-time.After(processLimit):
		// A Go program then prints the stacks of its goroutines.
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		time.Sleep(time.Second)
		return fmt.Errorf("%s did not end in %s", p.name, processLimit)
	}
}

// Kill ends the program as a crash would, if it runs, and returns when it has ended.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}
