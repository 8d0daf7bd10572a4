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

// programTime is how long a program may take. LVM waits for locks of its own, and for udev, which gives up
// an event after three minutes; to end LVM in the middle before that would leave more to put in order.
const programTime = 10 * time.Minute

// ProgramGrace is how long a program, LVM's mostly, may take to put things in order when it is told to end, before it is killed.
const ProgramGrace = 10 * time.Second

// Step is one thing that is done to make a pool: a program that is run, or a
// file that is written.
type Step struct {
	// Args are the program and its arguments; nil for a file.
	Args []string
	// File is the path, and Content the whole of it.
	File, Content string
}

// String is the step as a line of shell.
func (s Step) String() string {
	if s.Args != nil {
		return strings.Join(s.Args, " ")
	}
	return fmt.Sprintf("printf '%s' > %s", strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(s.Content), s.File)
}

// do executes the step.
func (s Step) do(ctx context.Context) error {
	log.G(ctx).WithField("step", s).Info("working on the pool")
	if s.Args == nil {
		return writeFile(s.File, s.Content)
	}
	_, err := run(ctx, s.Args...)
	return err
}

// run executes a program, and returns what it wrote to standard output. It is
// told to end when the context does, or after programTime. An error holds its
// command line and what it wrote to standard error.
func run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	line := strings.Join(args, " ")
	log.G(ctx).WithField("command", line).Debug("running a program")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// Killed in the middle LVM could leave a device suspended.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = ProgramGrace
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	if !devmapper.UdevRuns() {
		// Without it device-mapper's library waits for a daemon that is not there.
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

// writeFile replaces a file, unless it has that content already.
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
