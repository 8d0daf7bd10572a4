package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/program"
)

// programTime is the time limit of a program. LVM waits for its locks, and for udev, which gives up
// an event after three minutes. Killing LVM earlier would leave more to clean up.
const programTime = 10 * time.Minute

// Step is one change of a pool: a program to run, or a file to write.
type Step struct {
	// Args are the program and its arguments; nil for a file.
	Args []string
	// devices limit an LVM program; nil for another program.
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

func (s Step) do(ctx context.Context) error {
	log.G(ctx).WithField("step", s).Info("changing the pool")
	if s.Args == nil {
		return writeFile(s.File, s.Content)
	}
	_, err := run(ctx, s.devices, s.Args...)
	return err
}

// run runs a program and returns its standard output. An LVM program is limited to the devices,
// unless they are nil. The program is terminated when the context ends, or after programTime. An
// error has the command line, without the devices, and the standard error.
func run(ctx context.Context, devices lvmDevices, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	command := program.Command{Args: args, Line: strings.Join(args, " "), Env: []string{"LVM_SUPPRESS_FD_WARNINGS=1"}}
	if devices != nil {
		command.Args = devices.command(args...)
	}
	if !devmapper.UdevRuns() {
		// Without udevd, libdevmapper would wait for it.
		command.Env = append(command.Env, "DM_DISABLE_UDEV=1")
	}
	out, err := program.Run(ctx, command)
	switch {
	case errors.Is(err, program.ErrNotFound) && args[0] == "wipefs":
		return nil, fmt.Errorf("%w: install the package util-linux", err)
	case errors.Is(err, program.ErrNotFound):
		return nil, fmt.Errorf("%w: install LVM (the package lvm2)", err)
	case err != nil:
		return nil, err
	}
	return out.Out, nil
}

// writeFile replaces a file atomically, unless it already has that content.
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
