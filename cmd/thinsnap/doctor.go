package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/doctor"
)

func (a *app) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "check whether this machine can run containers with thinsnap",
		Description: "Checks the kernel, the programs, the configuration, the disk, the units, the daemon and containerd. Each\n" +
			"problem has a remedy to paste into a shell. It changes nothing, needs neither a daemon nor containerd, and\n" +
			"takes at most 20 seconds.\n" +
			"Exit code 1: problems were found. A warning is not a problem.",
		Flags:  []cli.Flag{jsonFlag()},
		Action: withArgs(0, 0, a.doctor),
	}
}

func (a *app) doctor(ctx context.Context, c *cli.Command) error {
	o := doctor.Options{
		File: c.String("config"), Optional: !c.IsSet("config"), AdminAddress: c.String("admin-address"),
		Version: readBuild().Version,
	}
	wait := a.waiting("checking")
	report := a.backend.diagnose(ctx, o)
	wait()
	var err error
	if c.Bool("json") {
		err = printJSON(a.out, report)
	} else {
		err = printDoctor(a.out, report, a.colour)
	}
	if err == nil && report.Problems > 0 {
		return fmt.Errorf("%s found", plural(report.Problems, "problem"))
	}
	return err
}

// printDoctor writes a line for each check with its finding, and below it, indented, further lines
// and the remedy.
func printDoctor(w io.Writer, r doctor.Report, p palette) error {
	names, statuses := 0, len(doctor.Problem)
	for _, c := range r.Checks {
		names = max(names, len(c.Name))
	}
	var b strings.Builder
	for _, c := range r.Checks {
		first, more, _ := strings.Cut(c.Seen, "\n")
		fmt.Fprintf(&b, "%s  %-*s  %s\n", doctorStatus(p, c.Status, statuses), names, c.Name, printable(first))
		indent := strings.Repeat(" ", statuses+names+4)
		if more != "" {
			for line := range strings.SplitSeq(more, "\n") {
				b.WriteString(indent + printable(line) + "\n")
			}
		}
		for _, line := range c.Remedy {
			b.WriteString(indent + "    " + p.bold(printable(line)) + "\n")
		}
	}
	if r.Problems == 0 {
		fmt.Fprintf(&b, "no problems found (%s)\n", plural(uint64(r.Warnings), "warning"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// doctorStatus returns the status in a column of its own.
func doctorStatus(p palette, status doctor.Status, width int) string {
	text := fmt.Sprintf("%-*s", width, status)
	switch status {
	case doctor.OK:
		return p.green(text)
	case doctor.Warning:
		return p.yellow(text)
	case doctor.Problem:
		return p.red(text)
	}
	return p.dim(text)
}
