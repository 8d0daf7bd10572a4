package repair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"
)

// programGrace is the time that a program has to end after SIGTERM.
const programGrace = 10 * time.Second

// run runs a program, without a time limit, and returns its standard error.
func run(ctx context.Context, args ...string) (string, error) {
	line := strings.Join(args, " ")
	log.G(ctx).WithField("command", line).Debug("running a program")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = programGrace
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stderr = &said
	err := cmd.Run()
	switch {
	case err == nil:
		return said.String(), nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%s: %w: install the package thin-provisioning-tools", line, err)
	}
	return said.String(), fmt.Errorf("%s: %w: %s", line, err, strings.Join(strings.Fields(said.String()), " "))
}

// complaints returns thin_check's lines about errors: none if it succeeded, at least one if it exited
// with an error.
func complaints(said string, err error) ([]string, error) {
	var exit *exec.ExitError
	if err == nil {
		return nil, nil
	}
	if !errors.As(err, &exit) || !exit.Exited() {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "examining ") && !strings.HasPrefix(line, "checking ") {
			lines = append(lines, line)
		}
	}
	if lines == nil {
		lines = []string{fmt.Sprintf("thin_check ended with status %d", exit.ExitCode())}
	}
	return lines, nil
}
