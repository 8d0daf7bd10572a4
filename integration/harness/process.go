package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// startLimit is how long a program may take until it can be used. A guest without KVM is slow.
	startLimit = 60 * time.Second
	// stopLimit is how long it may take to end when it is asked to.
	stopLimit = 60 * time.Second
	// logShown is how much of a log's end is shown, in bytes.
	logShown = 50000
)

// Process is a program that runs beside the test.
type Process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// start runs the program with its output appended to dir/name.log and returns when ready says yes. The program ends with
// the test owner, which is t or the test that t is a part of.
func start(t, owner testing.TB, dir, name string, cmd *exec.Cmd, ready func() bool) *Process {
	t.Helper()
	p := launch(t, dir, name, cmd)
	owner.Cleanup(func() { p.killAndShow(owner) })
	p.await(t, ready)
	return p
}

// launch is start for a caller who sees to the rest.
func launch(t testing.TB, dir, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{name: name, log: filepath.Join(dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	// A signal from a terminal is for the test, which then ends the programs in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	require.NoError(t, errors.Join(err, log.Close()), "start %s", name)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// await returns when ready says yes.
func (p *Process) await(t testing.TB, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(startLimit)
	for !ready() {
		select {
		case <-p.done:
			require.Failf(t, "program ended", "%s ended before it was ready: %v", p.name, p.err)
		default:
		}
		require.True(t, time.Now().Before(deadline), "%s was not ready after %s", p.name, startLimit)
		time.Sleep(20 * time.Millisecond)
	}
}

// killAndShow ends the program, and shows its log if the test has failed.
func (p *Process) killAndShow(t testing.TB) {
	t.Helper()
	p.Kill()
	if t.Failed() {
		t.Logf("log of %s:\n%s", p.name, p.Log())
	}
}

// Log returns the end of what the program has written, this time and when it was started before in the same directory.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(content) > logShown {
		content = content[len(content)-logShown:]
	}
	return strings.TrimSpace(string(content))
}

// Stop asks the program to end and fails the test unless it does so in time and with status 0.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	select {
	case <-p.done:
		require.Failf(t, "program ended", "%s ended before it was stopped: %v", p.name, p.err)
	default:
	}
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
		require.NoError(t, p.err, "%s", p.name)
	case <-time.After(stopLimit):
		// A Go program then writes where it hangs.
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		time.Sleep(time.Second)
		require.Failf(t, "program hangs", "%s did not end in %s", p.name, stopLimit)
	}
}

// Kill ends the program as a crash would and returns when it is gone. Nothing happens if it is.
func (p *Process) Kill() {
	// It fails if the process has ended, which is what is wanted.
	_ = p.cmd.Process.Kill()
	<-p.done
}

// listening says whether somebody accepts connections on a unix socket.
func listening(socket string) bool {
	conn, err := net.Dial("unix", socket)
	return err == nil && conn.Close() == nil
}

// withPath is the environment with directories put before the others in PATH, and more variables.
func withPath(dirs []string, more ...string) []string {
	path := fmt.Sprintf("PATH=%s:%s", strings.Join(dirs, ":"), os.Getenv("PATH"))
	return append(append(os.Environ(), path), more...)
}
