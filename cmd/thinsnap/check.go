package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func (a *app) checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "compare the store, the kernel and the pool, and report every difference",
		Description: "Asks the running daemon. Without a daemon, or before it has opened its pool, reads the root. Changes\n" +
			"nothing without --repair, and lists the action of --repair for each problem. --repair loses no data: it\n" +
			"deletes a volume only if that is provably left over from an operation of thinsnap.\n" +
			"Exit code 1: problems were found.",
		Flags: []cli.Flag{
			rootFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "repair", Usage: "list the problems, then repair those that can be repaired"},
		},
		Action: withArgs(0, 0, a.check),
	}
}

// checker returns a report. With repair it repairs first.
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
		return errors.New(found(report))
	}
	return err
}

// checker returns a checker of the running daemon, or of the root of a stopped daemon if none
// answers.
func (a *app) checker(c *cli.Command) (checker, error) {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return nil, err
	}
	client, err := newClient(c)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, repair bool) (check.Report, error) {
		if !c.IsSet("root") {
			report, err := client.Check(ctx, repair)
			switch {
			case errors.Is(err, admin.ErrNotOpen):
				return a.checkNotOpen(ctx, cfg, repair, err)
			case !errors.Is(err, admin.ErrNoDaemon):
				return report, err
			}
		}
		report, err := a.backend.checkRoot(ctx, cfg, repair)
		if errors.Is(err, metadata.ErrLocked) {
			err = fmt.Errorf("%w: to check a running daemon, leave out --root, and name its socket with --config or "+
				"--admin-address", err)
		}
		return report, err
	}, nil
}

// checkNotOpen checks the root of a daemon that cannot open its pool. The daemon has the root open
// only during its attempts. notOpen, their error, becomes the first finding.
func (a *app) checkNotOpen(ctx context.Context, cfg config.Config, repair bool, notOpen error) (check.Report, error) {
	report, err := a.backend.checkRoot(ctx, cfg, repair)
	switch {
	case errors.Is(err, metadata.ErrLocked):
		return report, notOpen
	case err == nil && !repair:
		reason := check.Finding{Kind: check.KindPool, Subject: "pool", Text: notOpen.Error()}
		report.Findings = slices.Insert(report.Findings, 0, reason)
	}
	return report, err
}

// waiting shows on a terminal what the command is waiting for, once a second, until done is called.
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
		writeFinding(&b, "problem", f, repair)
	}
	for _, f := range r.Pending {
		writeFinding(&b, "pending", f, "the daemon will ")
	}
	e := r.Examined
	fmt.Fprintf(&b, "%s; checked %s, %s with %s, %s\n", found(r), plural(e.Snapshots, "snapshot"),
		plural(e.Volumes, "volume"),
		plural(e.Mappings, "mapped block"), plural(e.Devices, "mapped device"))
	_, err := io.WriteString(w, b.String())
	return err
}

// found summarizes the report.
func found(r check.Report) string {
	switch n := len(r.Findings); n {
	case 0:
		return "no problems found"
	case 1:
		return "1 problem found"
	default:
		return fmt.Sprintf("%d problems found", n)
	}
}

func writeFinding(b *strings.Builder, head string, f check.Finding, repair string) {
	fmt.Fprintf(b, "%s: %s: %s\n", head, f.Subject, f.Text)
	if f.Repair != "" {
		fmt.Fprintf(b, "    %s%s\n", repair, f.Repair)
	}
}

func printRepaired(w io.Writer, r check.Report) error {
	var b strings.Builder
	for _, f := range r.Repaired {
		fmt.Fprintf(&b, "repaired: %s: %s\n", f.Subject, f.Text)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "not repaired: %s: %s\n", f.Subject, f.Text)
	}
	if len(r.Findings) == 0 {
		b.WriteString("no problems left\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
