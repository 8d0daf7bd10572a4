// Package program runs other programs, such as mkfs and LVM. It searches [Directories] or those of
// [WithDirectories], and passes on no variable of thinsnap's environment: a user may have run
// thinsnap with sudo. It runs no shell.
package program

import (
	"bytes"
	"cmp"
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
)

// Grace is the time for a program to clean up after SIGTERM before it is killed: SIGKILL could
// leave a device suspended.
const Grace = 10 * time.Second

// ErrNotFound is returned if none of the directories has the program.
var ErrNotFound = errors.New("program not found")

// Directories returns the directories in which programs are searched, in this order.
func Directories() []string {
	return []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"}
}

// Output is the output of a program.
type Output struct {
	Out []byte // standard output
	Err string // standard error
}

// Command is a program to run.
type Command struct {
	Args []string // the program's name and its arguments
	Env  []string // variables besides PATH and LC_ALL=C
	Line string   // the command line in errors; Args if it is empty
}

// Run runs a program, which is terminated when ctx ends. An error has the command line and the
// program's standard error. It matches ErrNotFound if there is no such program.
func Run(ctx context.Context, command Command) (Output, error) {
	defer reportProgress(ctx)()
	args := command.Args
	line := strings.Join(args, " ")
	log.G(ctx).WithField("command", line).Debug("running a program")
	line = cmp.Or(command.Line, line)
	directories := directoriesOf(ctx)
	path, err := Find(ctx, args[0])
	if err != nil {
		return Output{}, fmt.Errorf("%s: %w", line, err)
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + strings.Join(directories, ":"), "LC_ALL=C"}, command.Env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = Grace
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err = cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		err = fmt.Errorf("%s: %w: %s", line, err, strings.Join(strings.Fields(complaints.String()), " "))
	}
	return Output{Out: out.Bytes(), Err: complaints.String()}, err
}

// Find returns the path of a program, or ErrNotFound.
func Find(ctx context.Context, name string) (string, error) {
	directories := directoriesOf(ctx)
	for _, dir := range directories {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w in %s", ErrNotFound, strings.Join(directories, ", "))
}

// ExitStatus returns the exit status of a program, if err has one.
func ExitStatus(err error) (status int, ended bool) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Exited() {
		return 0, false
	}
	return exit.ExitCode(), true
}

type directoriesKey struct{}

// WithDirectories returns a context in which programs are searched only in these directories.
func WithDirectories(ctx context.Context, directories ...string) context.Context {
	return context.WithValue(ctx, directoriesKey{}, directories)
}

func directoriesOf(ctx context.Context) []string {
	if directories, ok := ctx.Value(directoriesKey{}).([]string); ok {
		return directories
	}
	return Directories()
}
