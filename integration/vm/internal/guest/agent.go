package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

// Agent serves the host until the host sends Shutdown.
func Agent() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	conn := wire.NewConn(patientReader{port})
	if err := conn.Send(wire.Message{Kind: wire.Hello}); err != nil {
		return fmt.Errorf("say hello to the host: %w", err)
	}
	a := &agent{conn: conn, running: make(map[uint32]*os.Process)}
	for {
		m, err := conn.Receive()
		if err != nil {
			return fmt.Errorf("receive from the host: %w", err)
		}
		if m.Kind == wire.Shutdown {
			return nil
		}
		if err := a.handle(m); err != nil {
			return fmt.Errorf("answer the host: %w", err)
		}
	}
}

// openPort opens the serial line that the kernel's command line names or, once it appears, the virtio-serial port.
func openPort() (*os.File, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	for _, option := range strings.Fields(string(cmdline)) {
		if device, ok := strings.CutPrefix(option, wire.PortParameter+"="); ok {
			return openLine(device)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == wire.PortName {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(name))), os.O_RDWR, 0)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no virtio-serial port is named %s", wire.PortName)
		}
	}
}

// openLine opens a serial line in raw mode.
func openLine(device string) (*os.File, error) {
	line, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(line.Fd()), unix.TCGETS)
	if err == nil {
		settings.Iflag, settings.Oflag, settings.Lflag = 0, 0, 0
		settings.Cflag = settings.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		settings.Cc[unix.VMIN], settings.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(int(line.Fd()), unix.TCSETS, settings)
	}
	if err != nil {
		line.Close()
		return nil, fmt.Errorf("set up the serial line %s: %w", device, err)
	}
	return line, nil
}

// patientReader reads a virtio-serial port, which reports end of file until the host has connected.
type patientReader struct{ *os.File }

func (r patientReader) Read(p []byte) (int, error) {
	for {
		n, err := r.File.Read(p)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type agent struct {
	conn *wire.Conn
	env  []string

	mu      sync.Mutex
	running map[uint32]*os.Process
}

func (a *agent) handle(m wire.Message) error {
	switch m.Kind {
	case wire.Setup:
		ready := wire.Message{Kind: wire.Ready}
		disks, err := setup(*m.Setup)
		if err != nil {
			ready.Error = err.Error()
		}
		ready.Disks = disks
		a.env = environment(*m.Setup, disks)
		return a.conn.Send(ready)
	case wire.Exec:
		a.start(m.ID, *m.Exec)
		return nil
	case wire.Signal:
		a.signal(m.ID, unix.Signal(m.Signal))
		return nil
	default:
		return fmt.Errorf("message of unknown kind %d", m.Kind)
	}
}

// start runs a program and reports its end in the background. Its output is cut off a second after its end: a daemon
// that it left behind, and that keeps the output open, must not delay the report.
func (a *agent) start(id uint32, p wire.ExecParams) {
	cmd := &exec.Cmd{
		Args:        p.Args,
		Env:         append(append([]string{}, a.env...), p.Env...),
		Dir:         p.Dir,
		Stdout:      stream{a.conn, wire.Stdout, id},
		Stderr:      stream{a.conn, wire.Stderr, id},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		WaitDelay:   time.Second,
	}
	path, err := lookPath(p.Args[0], p.Dir, cmd.Environ())
	if err == nil {
		cmd.Path = path
		err = cmd.Start()
	}
	if err != nil {
		status := 126
		if errors.Is(err, os.ErrNotExist) {
			status = 127
		}
		a.report(wire.Message{Kind: wire.Exit, ID: id, Status: status, Error: err.Error()})
		return
	}
	a.mu.Lock()
	a.running[id] = cmd.Process
	a.mu.Unlock()
	go func() {
		_ = cmd.Wait() // the status is in ProcessState
		a.mu.Lock()
		delete(a.running, id)
		a.mu.Unlock()
		a.report(wire.Message{Kind: wire.Exit, ID: id, Status: exitStatus(cmd.ProcessState)})
	}()
}

// report sends m. It ignores errors, because they mean that the host has gone.
func (a *agent) report(m wire.Message) { _ = a.conn.Send(m) }

// signal signals the program and its process group.
func (a *agent) signal(id uint32, sig unix.Signal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.running[id]; ok {
		_ = unix.Kill(-p.Pid, sig) // it may just have ended
	}
}

func exitStatus(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// lookPath finds a program in the PATH of the program's own environment, not the agent's.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		_, err := os.Stat(name)
		return name, err
	}
	for _, e := range env {
		list, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			path := filepath.Join(d, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s: not found in PATH: %w", name, os.ErrNotExist)
}

// stream is one output of a program on its way to the host.
type stream struct {
	conn *wire.Conn
	kind wire.Kind
	id   uint32
}

func (s stream) Write(p []byte) (int, error) {
	if err := s.conn.Send(wire.Message{Kind: s.kind, ID: s.id, Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}
