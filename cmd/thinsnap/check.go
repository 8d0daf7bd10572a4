package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/metadata"
)

func (a *app) checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "hold the store, the kernel and the pool against each other",
		Description: "It asks the running daemon, or, when none answers, looks at the root of the stopped one, in which it\n" +
			"changes nothing. What is wrong is listed with what --repair would do about it. --repair loses no data, and\n" +
			"deletes no volume that is not provably left over from an operation of the daemon's own.\n" +
			"Exit code 1: something is wrong.",
		Flags: []cli.Flag{
			rootFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "repair", Usage: "list what is wrong, and then mend what can be mended"},
		},
		Action: taking(0, 0, a.check),
	}
}

// checker makes a report, and with repair mends things first.
type checker func(ctx context.Context, repair bool) (check.Report, error)

func (a *app) check(ctx context.Context, c *cli.Command) error {
	run, err := a.checker(c)
	if err != nil {
		return err
	}
	var before check.Report
	wait := a.waiting("checking")
	before, err = run(ctx, false)
	wait()
	if err != nil {
		return err
	}
	report := before
	if c.Bool("repair") {
		if !c.Bool("json") {
			if err := printReport(a.out, before, "repair: "); err != nil {
				return err
			}
		}
		wait := a.waiting("repairing")
		report, err = run(ctx, true)
		wait()
		if err != nil {
			return err
		}
	}
	switch {
	case c.Bool("json"):
		err = printJSON(a.out, report)
	case c.Bool("repair"):
		err = printRepaired(a.out, report)
	default:
		err = printReport(a.out, report, "--repair would ")
	}
	if err == nil && len(report.Findings) > 0 {
		return fmt.Errorf("%d things are wrong", len(report.Findings))
	}
	return err
}

// checker returns what checks the running daemon, or else the root of the stopped one.
func (a *app) checker(c *cli.Command) (checker, error) {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return nil, err
	}
	daemon, err := client(c)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, repair bool) (check.Report, error) {
		if !c.IsSet("root") {
			report, err := daemon.Check(ctx, repair)
			if !errors.Is(err, admin.ErrNoDaemon) {
				return report, err
			}
		}
		report, err := a.backend.checkRoot(ctx, cfg, repair)
		if errors.Is(err, metadata.ErrLocked) {
			err = fmt.Errorf("%w: check it without --root, and with --config or --admin-address so that the daemon is found", err)
		}
		return report, err
	}, nil
}

// waiting says on a terminal what is being waited for, once a second, until the returned function is called.
func (a *app) waiting(what string) (done func()) {
	if !a.terminal {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		started := time.Now()
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-tick.C:
				fmt.Fprintf(a.errOut, "\r%s: %d s", what, int(time.Since(started).Seconds()))
			case <-stop:
				tick.Stop()
				if time.Since(started) >= time.Second {
					fmt.Fprint(a.errOut, "\r\x1b[K")
				}
				return
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

func printReport(w io.Writer, r check.Report, repair string) error {
	var b strings.Builder
	for _, f := range r.Findings {
		writeFinding(&b, "wrong", f, repair)
	}
	for _, f := range r.Pending {
		writeFinding(&b, "pending", f, "the daemon will ")
	}
	e := r.Examined
	fmt.Fprintf(&b, "%s: %d snapshots, %d volumes with %d mapped blocks, %d mapped devices\n",
		verdict(r), e.Snapshots, e.Volumes, e.Mappings, e.Devices)
	_, err := io.WriteString(w, b.String())
	return err
}

func verdict(r check.Report) string {
	if len(r.Findings) > 0 {
		return fmt.Sprintf("%d wrong", len(r.Findings))
	}
	return "all is well"
}

func writeFinding(b *strings.Builder, head string, f check.Finding, repair string) {
	fmt.Fprintf(b, "%s: %s: %s\n", head, f.Subject, f.Text)
	if f.Repair != "" {
		fmt.Fprintf(b, "    %s%s\n", repair, f.Repair)
	}
}

func printRepaired(w io.Writer, r check.Report) error {
	var b strings.Builder
	for _, f := range r.Mended {
		fmt.Fprintf(&b, "mended: %s: %s\n", f.Subject, f.Text)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "still wrong: %s: %s\n", f.Subject, f.Text)
	}
	if len(r.Findings) == 0 {
		b.WriteString("all is well\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
