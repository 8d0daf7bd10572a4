package repair

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper/program"
)

// run runs a program, without a time limit, and returns its standard error.
func run(ctx context.Context, args ...string) (string, error) {
	out, err := program.Run(ctx, program.Command{Args: args})
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, program.ErrNotFound):
		return "", fmt.Errorf("%w: install the package thin-provisioning-tools", err)
	}
	return out.Err, err
}

// complaints returns thin_check's lines about errors: none if it succeeded, and at least one if it
// exited with an error.
func complaints(said string, err error) ([]string, error) {
	if err == nil {
		return nil, nil
	}
	status, ended := program.ExitStatus(err)
	if !ended {
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
		lines = []string{fmt.Sprintf("thin_check ended with status %d", status)}
	}
	return lines, nil
}
