package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
)

// programTime is the time limit of a program. LVM waits for its locks, and for udev, which gives up
// an event after three minutes. Killing LVM earlier would leave more to clean up.
const programTime = 10 * time.Minute

// ProgramGrace is the time that a program has to clean up after SIGTERM before it is killed.
const ProgramGrace = 10 * time.Second

// Step is one step of making a pool: a program to run, or a file to write.
type Step struct {
	// Args are the program and its arguments; nil for a file.
	Args []string
	// devices limit a program of LVM; nil for another program.
	devices lvmDevices
	// File is the path of the file, and Content its whole content.
	File, Content string
}

// String returns the step as a shell command.
func (s Step) String() string {
	if s.Args != nil {
		return strings.Join(s.Args, " ")
	}
	return fmt.Sprintf("printf '%s' > %s", strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(s.Content), s.File)
}

// do executes the step.
func (s Step) do(ctx context.Context) error {
	log.G(ctx).WithField("step", s).Info("changing the pool")
	if s.Args == nil {
		return writeFile(s.File, s.Content)
	}
	_, err := run(ctx, s.devices, s.Args...)
	return err
}

// run runs a program, and returns its standard output. A program of LVM is limited to the devices,
// unless they are nil. It is terminated when the context ends, or after programTime. An error has its
// command line, without the devices, and its standard error.
func run(ctx context.Context, devices lvmDevices, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	line := strings.Join(args, " ")
	if devices != nil {
		args = devices.command(args...)
	}
	log.G(ctx).WithField("command", strings.Join(args, " ")).Debug("running a program")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// SIGKILL could leave a device suspended.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = ProgramGrace
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	if !devmapper.UdevRuns() {
		// Otherwise libdevmapper waits for udevd.
		cmd.Env = append(cmd.Env, "DM_DISABLE_UDEV=1")
	}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s: %w: install LVM (the package lvm2)", line, err)
	case ctx.Err() != nil:
		err = errors.Join(ctx.Err(), err)
	}
	return nil, fmt.Errorf("%s: %w: %s", line, err, strings.Join(strings.Fields(complaints.String()), " "))
}

// writeFile replaces a file atomically, unless it has that content already.
func writeFile(path, content string) error {
	if b, err := os.ReadFile(path); err == nil && string(b) == content {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return os.Rename(temporary, path)
}
