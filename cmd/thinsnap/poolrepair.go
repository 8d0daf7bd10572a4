package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/config"
)

func (a *app) poolCheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "check the pool's metadata with thin_check",
		Description: "No daemon may be running on the root, and no snapshot may be mounted. The pool is deactivated, until the\n" +
			"next start of the daemon. Nothing else changes.\n" +
			"Exit code 1: problems were found, or the check failed.",
		Flags:  []cli.Flag{rootFlag()},
		Action: withArgs(0, 0, a.checkPool),
	}
}

func (a *app) poolRepairCommand() *cli.Command {
	return &cli.Command{
		Name:  "repair",
		Usage: "repair the pool's metadata; for a pool on LVM, print the commands",
		Description: "No daemon may be running on the root, and no snapshot may be mounted. If the metadata is only marked\n" +
			"needs_check, the mark is cleared. Damaged metadata, or metadata that counts more blocks as used than the\n" +
			"volumes map, is rewritten by thin_repair. The result replaces the old metadata only if thin_check finds no\n" +
			"problem in it, and the old metadata is kept next to it. An interrupted repair leaves either the old or the\n" +
			"repaired metadata. For a pool that LVM made, only the commands are printed.\n" +
			"Lost data is listed. Exit code 1: data was lost, or nothing was repaired.",
		Flags: []cli.Flag{
			rootFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "only print the commands"},
			&cli.StringFlag{Name: "metadata", Usage: "new `SIZE` of the metadata space, if the metadata was full"},
			&cli.BoolFlag{Name: "undo", Usage: "restore the metadata from before the last repair, and keep a copy of the " +
				"present metadata"},
			&cli.BoolFlag{Name: "yes", Usage: "undo a repair even if the pool was used since"},
		},
		Action: withArgs(0, 0, a.repairPool),
	}
}

func (a *app) checkPool(ctx context.Context, c *cli.Command) error {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return err
	}
	ctx, release := untilSignal(ctx)
	defer release()
	wait := a.waiting("checking")
	report, err := a.backend.checkPool(ctx, cfg)
	wait()
	if err != nil {
		return err
	}
	if err := printHealth(a.out, report); err != nil {
		return err
	}
	if !report.Good() {
		return errors.New("the pool's metadata needs a repair: \"thinsnap pool repair --dry-run\" prints its commands")
	}
	return nil
}

func printHealth(w io.Writer, r repair.Report) error {
	var b strings.Builder
	for _, line := range r.Complaints {
		fmt.Fprintf(&b, "problem: %s\n", line)
	}
	if r.NeedsCheck {
		b.WriteString("problem: the kernel has marked the metadata needs_check, and refuses changes until the " +
			"mark is cleared\n")
	}
	if r.Lost > 0 {
		fmt.Fprintf(&b, "problem: %s of data used, but part of no volume: from writes that failed, or that a power "+
			"failure interrupted; a repair frees them\n", plural(int(r.Lost), "block"))
	}
	for _, id := range r.Treeless {
		fmt.Fprintf(&b, "note: volume %d has no mapping tree: the kernel left it after a failed write; it has no data, and "+
			"thinsnap ignores it\n", id)
	}
	verdict := "no problems found"
	switch {
	case r.Damaged():
		verdict = "damaged"
	case r.NeedsCheck:
		verdict = "not damaged, but marked needs_check"
	case r.Lost > 0:
		verdict = "not damaged, but the used blocks are miscounted"
	}
	fmt.Fprintf(&b, "%s: metadata in %s, %s\n", verdict, r.Path, plural(r.Volumes, "volume"))
	_, err := io.WriteString(w, b.String())
	return err
}

func (a *app) repairPool(ctx context.Context, c *cli.Command) error {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return err
	}
	if c.Bool("undo") {
		if c.Bool("dry-run") || c.IsSet("metadata") {
			return usagef("--undo restores the old metadata; the only option that it takes is --yes")
		}
		return a.undoRepair(ctx, cfg, c.Bool("yes"))
	}
	var bytes config.Size
	if text := c.String("metadata"); text != "" {
		if strings.HasPrefix(text, "+") {
			return usagef("--metadata: give the new size, without a plus sign")
		}
		if err := bytes.UnmarshalText([]byte(text)); err != nil {
			return usagef("--metadata: %v", err)
		}
	}
	ctx, release := untilSignal(ctx)
	defer release()
	wait := a.waiting("checking")
	done, err := a.backend.repairPool(ctx, cfg, uint64(bytes), func(report repair.Report, lines []string) (bool, error) {
		wait()
		wait = a.waiting("repairing")
		if err := printHealth(a.out, report); err != nil {
			return false, err
		}
		_, err := fmt.Fprintln(a.out, strings.Join(lines, "\n"))
		return !c.Bool("dry-run"), err
	})
	wait()
	switch {
	case errors.Is(err, repair.ErrNothingToDo):
		_, err = fmt.Fprintln(a.out, err)
		return err
	case err != nil || c.Bool("dry-run"):
		return err
	}
	return printOutcome(a.out, done.Outcome, done.Losses)
}

func printOutcome(w io.Writer, o repair.Outcome, losses []string) error {
	var b strings.Builder
	for _, loss := range losses {
		fmt.Fprintf(&b, "lost: %s\n", loss)
	}
	if !o.Compared {
		b.WriteString("note: the old metadata could not be read completely, so more may be lost than is listed\n")
	}
	fmt.Fprintf(&b, "repaired: %s, %s; the old metadata is in %s\n", o.Report.Path, plural(o.Report.Volumes, "volume"),
		o.Backup)
	b.WriteString("next: start thinsnap and run \"thinsnap check\"; to undo the repair, run \"thinsnap pool repair " +
		"--undo\" before that\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if len(losses) > 0 {
		return fmt.Errorf("data was lost in %s: remove the listed snapshots, and those made from them",
			plural(len(losses), "volume"))
	}
	return nil
}

func (a *app) undoRepair(ctx context.Context, cfg config.Config, lose bool) error {
	restored, kept, err := a.backend.undoRepair(ctx, cfg, lose)
	if errors.Is(err, repair.ErrUsedSince) {
		return fmt.Errorf("%w; to undo the repair anyway, add --yes", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "restored: %s; the replaced metadata is in %s\n", restored, kept)
	return err
}
