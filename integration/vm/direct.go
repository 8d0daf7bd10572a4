package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// Prefer reports whether programs run on the host itself, and why. THINSNAP_VM=always and THINSNAP_VM=never decide it;
// THINSNAP_KERNEL=SUITE asks for a guest with that Debian suite's kernel. Otherwise a host with root and dm-thin is
// used.
func Prefer() (direct bool, reason string, err error) {
	suite := kernelSuite()
	switch v := os.Getenv("THINSNAP_VM"); v {
	case "always":
		return false, "THINSNAP_VM=always", nil
	case "never":
		if suite != "" {
			return false, "", fmt.Errorf("THINSNAP_KERNEL is %q, which needs a guest, but THINSNAP_VM is never", suite)
		}
		return true, "THINSNAP_VM=never", nil
	case "", "auto":
	default:
		return false, "", fmt.Errorf("THINSNAP_VM is %q: it may be always, never or auto", v)
	}
	if suite != "" {
		return false, "THINSNAP_KERNEL=" + suite, nil
	}
	if err := dmtest.KernelUsable(); err != nil {
		return false, err.Error(), nil //nolint:nilerr // the reason for a guest, not a failure
	}
	return true, "the host has root and dm-thin", nil
}

// Direct runs commands on the host with the interface of a guest. Its disks are loop devices.
type Direct struct {
	disks []string
}

// OpenDirect attaches the disks as loop devices.
func OpenDirect(disks []Disk) (*Direct, error) {
	d := &Direct{}
	for _, disk := range disks {
		if err := disk.prepare(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		out, err := exec.Command("losetup", "--find", "--show", disk.Path).CombinedOutput()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach %s to a loop device: %w: %s", disk.Path, err, out), d.Close())
		}
		d.disks = append(d.disks, strings.TrimSpace(string(out)))
	}
	return d, nil
}

// Close detaches the disks.
func (d *Direct) Close() error {
	var errs []error
	for _, dev := range d.disks {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w: %s", dev, err, out))
		}
	}
	d.disks = nil
	return errors.Join(errs...)
}

// Run is like [Machine.Run]. c.Env is added to this process's environment and wins.
func (d *Direct) Run(ctx context.Context, c Command) error {
	p, err := d.Start(c)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGKILL) })
	defer stop()
	err = p.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", c.Args[0], ctx.Err())
	}
	return err
}

// DirectProcess is a command started on the host.
type DirectProcess struct{ cmd *exec.Cmd }

// Start starts a command without waiting for it.
func (d *Direct) Start(c Command) (*DirectProcess, error) {
	if len(c.Args) == 0 {
		return nil, fmt.Errorf("%w: no program named", ErrNotStarted)
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), "THINSNAP_VM=never")
	for i, dev := range d.disks {
		cmd.Env = append(cmd.Env, fmt.Sprintf("THINSNAP_DISK%d=%s", i, dev))
	}
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, c.Stdout, c.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w: %s", ErrNotStarted, os.ErrNotExist, c.Args[0])
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	return &DirectProcess{cmd}, nil
}

// Wait is like [Process.Wait].
func (p *DirectProcess) Wait() error {
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &ExitError{Program: p.cmd.Path, Status: exitStatus(exit.ProcessState)}
	}
	return err
}

// Signal is like [Process.Signal].
func (p *DirectProcess) Signal(sig syscall.Signal) error {
	if err := unix.Kill(-p.cmd.Process.Pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.cmd.Path, err)
	}
	return nil
}

func exitStatus(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}
