// Command thinsnap is a containerd snapshotter on device-mapper thin provisioning: the daemon, and
// the commands for its operator.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// Exit codes of all commands.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2 // invalid command line
	exitUnavailable = 3 // no daemon answers
	// exitConfig is for an invalid configuration, and for a root directory, a store or a kernel
	// that thinsnap rejects: EX_CONFIG of sysexits.h. A restart does not help.
	exitConfig = 78
)

func main() {
	terminal := isTerminal(os.Stdout)
	a := &app{
		configFile: config.DefaultPath,
		in:         os.Stdin, out: os.Stdout, errOut: os.Stderr, terminal: terminal, colour: colours(terminal),
		backend: realBackend(),
	}
	code := a.run(context.Background(), os.Args)
	if code == exitUsage || code == exitConfig {
		unixsocket.RefusePassed()
	}
	os.Exit(code)
}

// run executes a command line, prints its error and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	err := a.command().Run(ctx, args)
	if err == nil {
		return exitOK
	}
	report(a.errOut, err)
	var usage *usageError
	var invalid *config.Error
	switch {
	case errors.As(err, &invalid), daemon.IsFinal(err):
		return exitConfig
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, admin.ErrNoDaemon):
		return exitUnavailable
	default:
		return exitFailure
	}
}

// report writes an error in one line, or each problem of a configuration in its own line.
func report(w io.Writer, err error) {
	var problems *config.Error
	if errors.As(err, &problems) {
		for _, p := range problems.Problems {
			one := config.Error{File: problems.File, Problems: []error{p}}
			fmt.Fprintln(w, "thinsnap: "+one.Error())
		}
		return
	}
	fmt.Fprintln(w, "thinsnap: "+oneLine(err))
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
