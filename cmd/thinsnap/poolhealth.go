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
		Usage: "have thin_check look at the pool's metadata",
		Description: "No daemon may be running on the root, and no snapshot may be mounted. The pool is taken out of the kernel, into\n" +
			"which the next start of the daemon brings it back; nothing else is changed.\n" +
			"Exit code 1: something is wrong, or it could not be looked at.",
		Flags:  []cli.Flag{rootFlag()},
		Action: taking(0, 0, a.checkPool),
	}
}

func (a *app) poolRepairCommand() *cli.Command {
	return &cli.Command{
		Name:  "repair",
		Usage: "repair the metadata of a pool in files",
		Description: "No daemon may be running on the root, and no snapshot may be mounted. Metadata that is only marked as in need of a\n" +
			"check gets the mark taken off; damaged metadata is written anew by thin_repair. The result takes the place of what\n" +
			"was there only if thin_check finds nothing wrong in it, and what was there is kept beside it. Whenever it is\n" +
			"interrupted, the pool has the old metadata, or the repaired. For a pool that LVM made it only prints the commands.\n" +
			"What the repair could not save is listed. Exit code 1: something was lost, or nothing was repaired.",
		Flags: []cli.Flag{
			rootFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "only print what would be done, as commands"},
			&cli.StringFlag{Name: "metadata", Usage: "`SIZE` of the space for metadata afterwards, for metadata that was full"},
			&cli.BoolFlag{Name: "undo", Usage: "put back what was there before the last repair, and keep what is there now"},
			&cli.BoolFlag{Name: "yes", Usage: "undo a repair although the pool was used since"},
		},
		Action: taking(0, 0, a.repairPool),
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
		return errors.New("the pool's metadata is not in order: \"thinsnap pool repair --dry-run\" says what a repair would do")
	}
	return nil
}

// printHealth says in words what a check of a pool's metadata has found.
func printHealth(w io.Writer, r repair.Report) error {
	var b strings.Builder
	for _, line := range r.Complaints {
		fmt.Fprintf(&b, "wrong: %s\n", line)
	}
	if r.NeedsCheck {
		b.WriteString("wrong: the kernel has marked it as in need of a check, and changes nothing until the mark is taken off\n")
	}
	for _, id := range r.Treeless {
		fmt.Fprintf(&b, "note: volume %d has no tree of mappings: the kernel has left it when a write failed; it holds nothing, and thinsnap leaves it alone\n", id)
	}
	verdict := "all is well"
	switch {
	case r.Damaged():
		verdict = "damaged"
	case r.NeedsCheck:
		verdict = "not damaged, but marked"
	}
	fmt.Fprintf(&b, "%s: the metadata in %s, with %d volumes\n", verdict, r.Path, r.Volumes)
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
			return usagef("--undo puts back what was there; it goes with no other option but --yes")
		}
		return a.undoRepair(ctx, cfg, c.Bool("yes"))
	}
	var bytes config.Size
	if text := c.String("metadata"); text != "" {
		if strings.HasPrefix(text, "+") {
			return usagef("--metadata: say how large it is to be, without a plus sign")
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
		b.WriteString("note: what was there could not be read to the end, so there may be losses that are not listed\n")
	}
	fmt.Fprintf(&b, "repaired: %s, with %d volumes; what was there is in %s\n", o.Report.Path, o.Report.Volumes, o.Backup)
	b.WriteString("start thinsnap, and run \"thinsnap check\"; \"thinsnap pool repair --undo\" before that takes the repair back\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if len(losses) > 0 {
		return fmt.Errorf("%d volumes have lost something: remove the snapshots that are listed, and what was made from them", len(losses))
	}
	return nil
}

func (a *app) undoRepair(ctx context.Context, cfg config.Config, lose bool) error {
	restored, kept, err := a.backend.undoRepair(ctx, cfg, lose)
	if errors.Is(err, repair.ErrUsedSince) {
		return fmt.Errorf("%w; to put it back all the same, add --yes", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "put back: %s; what was there is in %s\n", restored, kept)
	return err
}
