package harness

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// commandLimit is how long one command of a test may take.
const commandLimit = 3 * time.Minute

// run runs a command to its end and returns its standard output without the last line feed. The error has what it wrote
// to standard error.
func run(env []string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Children that keep the pipes, such as a shim, must not hold up the test.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	out := strings.TrimSuffix(stdout.String(), "\n")
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not done after %s: %w", commandLimit, err)
		}
		return out, fmt.Errorf("%s: %w\n%s%s", cmd, err, out, stderr.String())
	}
	return out, nil
}

// command is a program with the arguments that are the same at every call.
type command struct {
	env     []string
	program string
	args    []string
}

func (c command) run(args ...string) (string, error) {
	return run(c.env, c.program, append(slices.Clone(c.args), args...)...)
}

// must is run in a test for which every failure is one of its own.
func (c command) must(t testing.TB, args ...string) string {
	t.Helper()
	start := time.Now()
	out, err := c.run(args...)
	require.NoError(t, err)
	t.Logf("%5.1f s  %s %s", time.Since(start).Seconds(), filepath.Base(c.program), strings.Join(args, " "))
	return out
}
