package harness

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

const commandLimit = 3 * time.Minute

// Run runs a command to its end and returns its standard output without the last line feed. The error includes all
// output.
func Run(env []string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Children that keep the pipes open, such as a shim, must not delay the caller.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	out := strings.TrimSuffix(stdout.String(), "\n")
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("still running after %s: %w", commandLimit, err)
		}
		return out, fmt.Errorf("%s: %w\n%s%s", cmd, err, out, stderr.String())
	}
	return out, nil
}
