package setup

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/program"
)

// A Release is a version of containerd.
type Release struct {
	Major, Minor int
	Text         string // as the program prints it, such as "1.6.20~ds1"
}

func (r Release) String() string { return r.Text }

// AtLeast reports whether the release is the given one or newer.
func (r Release) AtLeast(major, minor int) bool {
	return r.Major > major || r.Major == major && r.Minor >= minor
}

// programTime limits a run of containerd that prints a version or a configuration.
const programTime = 30 * time.Second

var releaseNumber = regexp.MustCompile(`^v?(\d+)\.(\d+)`)

// Release runs the program to read its version. It fails with errdefs.ErrInvalidArgument if the
// output is not a version, and with errors of the operating system.
func (c Containerd) Release(ctx context.Context) (Release, error) {
	out, err := c.execute(ctx, "--version")
	if err != nil {
		return Release{}, err
	}
	return parseRelease(c.Executable, string(out))
}

// parseRelease reads "containerd MODULE VERSION REVISION".
func parseRelease(exe, line string) (Release, error) {
	if fields := strings.Fields(line); len(fields) > 2 {
		if m := releaseNumber.FindStringSubmatch(fields[2]); m != nil {
			major, _ := strconv.Atoi(m[1])
			minor, _ := strconv.Atoi(m[2])
			return Release{major, minor, strings.TrimPrefix(fields[2], "v")}, nil
		}
	}
	return Release{}, fmt.Errorf("%s --version prints %q, not a version of containerd: %w", exe, line,
		errdefs.ErrInvalidArgument)
}

// execute runs containerd, and returns its standard output. k3s is one program with several names,
// chosen by the first argument.
func (c Containerd) execute(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	out, err := program.Run(program.WithDirectories(ctx, filepath.Dir(c.Executable)), program.Command{
		Args: append([]string{filepath.Base(c.Executable)}, args...),
		Line: strings.Join(append([]string{c.Executable}, args...), " "),
	})
	return out.Out, withoutSecrets(err)
}
