package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

// ErrGuestGone is returned if a guest has ended, for any reason, before it completed the request.
var ErrGuestGone = errors.New("the guest has ended")

// ErrGuestHung is returned together with ErrGuestGone if the guest's kernel reported a hung processor. The guest was
// killed for that.
var ErrGuestHung = errors.New("its kernel hung")

// ErrStaleCode is returned together with ErrGuestGone if an emulated processor executed the breakpoint of an
// instruction that the guest's kernel had already replaced. This is a fault of the emulator, not of the kernel: it
// translated the code too early.
var ErrStaleCode = errors.New("the emulator executed replaced code")

const (
	tailLines = 100
	stopLimit = 30 * time.Second
	// stopRootLimit is for a guest whose init first stops each unit.
	stopRootLimit = 5 * time.Minute
	// hangOutput is the time that the kernel gets to report where it hangs.
	hangOutput = 2 * time.Second
)

// Machine is a running guest. Its methods are safe for concurrent use.
type Machine struct {
	accel   string
	console *console
	cmd     *exec.Cmd
	conn    *wire.Conn
	disks   []string
	done    chan struct{} // closed when QEMU or the user-mode kernel has ended

	stopLimit time.Duration

	mu        sync.Mutex
	nextID    uint32
	processes map[uint32]*Process
}

// Boot starts a guest and returns when it is ready for commands. The guest ends with this process at the latest. An
// error has the console's last lines.
func Boot(ctx context.Context, config Config) (*Machine, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	if config.Accel == userMode {
		return bootUserMode(ctx, config)
	}
	k, err := findKernel(config.Cache, config.Kernel)
	if err != nil {
		return nil, err
	}
	ramdisk, err := initrd(k, config.Root != "")
	if err != nil {
		return nil, err
	}
	if config.Accel == "" {
		if config.Accel, err = chooseAccel(ctx, config.Cache, k, ramdisk); err != nil {
			return nil, err
		}
	}
	if config.Accel == "tcg" {
		if k.image, err = k.unpacked(); err != nil {
			return nil, err
		}
	}
	command := func(socket string) (*exec.Cmd, error) { return qemuCommand(config, k, ramdisk, socket), nil }
	if config.Accel == "tcg" {
		// One boot in some hundreds hangs or crashes in the emulated kernel, before it uses a disk.
		m, err := tryBoot(ctx, config, k, config.BootLimit/3, command)
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrStaleCode) {
			return m, err
		}
	}
	return tryBoot(ctx, config, k, config.BootLimit, command)
}

// tryBoot boots a guest once, within a limit. command gets the path of the socket for the agent's connection.
func tryBoot(
	ctx context.Context, config Config, k kernel, limit time.Duration, command func(socket string) (*exec.Cmd, error),
) (*Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	// The directory of the socket can be removed early: QEMU connects at once, and a connected socket needs no name.
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the agent's socket: %w", err)
	}
	defer os.RemoveAll(dir)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "agent"), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the agent: %w", err)
	}
	defer listener.Close()

	m := &Machine{
		accel:     config.Accel,
		console:   newConsole(config.Console),
		done:      make(chan struct{}),
		processes: make(map[uint32]*Process),
		stopLimit: stopLimit,
	}
	if config.Root != "" {
		m.stopLimit = stopRootLimit
	}
	if m.cmd, err = command(filepath.Join(dir, "agent")); err != nil {
		return nil, err
	}
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	err = startTied(m.cmd, m.done)
	for _, file := range m.cmd.ExtraFiles {
		file.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(m.cmd.Path), err)
	}
	if err := m.greet(ctx, listener, config, k); err != nil {
		m.Kill()
		if m.console.staleCode() {
			err = fmt.Errorf("%w: %w", err, ErrStaleCode)
		}
		return nil, fmt.Errorf("boot a guest: %w; its console:\n%s", err, m.Console())
	}
	return m, nil
}

// greet waits for QEMU to connect and for the guest to be set up.
func (m *Machine) greet(ctx context.Context, listener net.Listener, config Config, k kernel) error {
	// Closing the listener or the connection ends a wait on it.
	var conn net.Conn
	result := make(chan error, 1)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			result <- err
			return
		}
		accepted <- c
		result <- m.setUp(c, config, k)
	}()
	err := func() error {
		for {
			select {
			case conn = <-accepted:
			case err := <-result:
				return err
			case <-m.done:
				return ErrGuestGone
			case <-ctx.Done():
				return fmt.Errorf("no answer from the agent: %w", ctx.Err())
			}
		}
	}()
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return err
	}
	go func() {
		m.receive()
		conn.Close()
	}()
	go m.killHung()
	return nil
}

// killHung kills the guest when its kernel hangs, which is sooner and clearer than a test's time limit.
func (m *Machine) killHung() {
	select {
	case <-m.console.hung:
		time.Sleep(hangOutput)
		m.Kill()
	case <-m.done:
	}
}

// gone returns the error of a guest that has ended.
func (m *Machine) gone() error {
	select {
	case <-m.console.hung:
		return fmt.Errorf("%w: %w", ErrGuestGone, ErrGuestHung)
	default:
	}
	if m.console.staleCode() {
		return fmt.Errorf("%w: %w", ErrGuestGone, ErrStaleCode)
	}
	return ErrGuestGone
}

func (m *Machine) setUp(c net.Conn, config Config, k kernel) error {
	m.conn = wire.NewConn(c)
	if _, err := m.conn.Receive(); err != nil {
		return fmt.Errorf("wait for the agent: %w: %w", ErrGuestGone, err)
	}
	params := wire.SetupParams{Modules: k.modules, Udev: config.Udev, Root: config.Root != ""}
	for i, s := range config.Shares {
		share := wire.Share{Tag: shareTag(i), Path: s}
		if m.accel == userMode {
			share.Tag = ""
		}
		params.Shares = append(params.Shares, share)
	}
	for i := range config.Disks {
		if m.accel == userMode {
			params.Disks = append(params.Disks, userModeDisk(i))
		} else {
			params.DiskSerials = append(params.DiskSerials, diskSerial(i))
		}
	}
	if err := m.conn.Send(wire.Message{Kind: wire.Setup, Setup: &params}); err != nil {
		return fmt.Errorf("set the guest up: %w: %w", ErrGuestGone, err)
	}
	ready, err := m.conn.Receive()
	if err != nil {
		return fmt.Errorf("set the guest up: %w: %w", ErrGuestGone, err)
	}
	if ready.Error != "" {
		return fmt.Errorf("set the guest up: %s", ready.Error)
	}
	m.disks = ready.Disks
	return nil
}

// receive passes the agent's messages to their commands, until the guest ends.
func (m *Machine) receive() {
	for {
		msg, err := m.conn.Receive()
		if err != nil {
			break
		}
		m.mu.Lock()
		p := m.processes[msg.ID]
		if msg.Kind == wire.Exit {
			delete(m.processes, msg.ID)
		}
		m.mu.Unlock()
		if p != nil {
			p.handle(msg)
		}
	}
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, p := range m.processes {
		delete(m.processes, id)
		p.fail(m.gone())
	}
	m.processes = nil
}

// Accel returns the guest's accelerator: "kvm", "tcg" or "uml".
func (m *Machine) Accel() string { return m.accel }

// GoEnv returns variables for Go programs that are tested in the guest, not measured. On an emulated processor, garbage
// collection takes a quarter of their time, and memory suffices for fewer collections.
func (m *Machine) GoEnv() []string {
	if m.accel != "tcg" {
		return nil
	}
	return []string{"GOGC=400"}
}

// Disks returns the guest's names of the disks, in the order of Config.Disks.
func (m *Machine) Disks() []string { return append([]string(nil), m.disks...) }

// Console returns the last lines of the guest's console.
func (m *Machine) Console() string { return m.console.tail(tailLines) }

// Done is closed when the guest has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Kill ends the guest at once, like a power cut: nothing is flushed, and no program is notified. It returns when the
// disk images are free for the next guest, and does nothing to a guest that has ended.
func (m *Machine) Kill() {
	_ = unix.Kill(m.cmd.Process.Pid, unix.SIGKILL)
	<-m.done
}

// Stop flushes the disks and powers the guest off, with a Root by its init. A guest that has not ended after half a
// minute (with a Root after five), or when ctx is done, is killed, and the error says so.
func (m *Machine) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.stopLimit)
	defer cancel()
	go func() { _ = m.conn.Send(wire.Message{Kind: wire.Shutdown}) }() // blocks if the guest has ended
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		console := m.Console()
		m.Kill()
		return fmt.Errorf("power off the guest: %w; its console:\n%s", ctx.Err(), console)
	}
}
