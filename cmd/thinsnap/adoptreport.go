package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/setup"
)

// printPlan describes a plan before anything is changed.
func (a *app) printPlan(c *cli.Command, p plan.Plan, change setup.Difference, changeErr error) error {
	var b strings.Builder
	o := p.Options
	if err := printRows(&b, []row{
		{"Pool", printable(o.Pool)},
		{"The Built-in's Databases", printable(o.RootPath)},
		{"containerd's Data", printable(o.ContainerdRoot)},
		{"thinsnap's Root", printable(o.Config.Root)},
		{"Proxy Plugin", printable(o.Proxy)},
	}); err != nil {
		return err
	}
	b.WriteString("\n")
	writePlanRows(&b, a.colour, p, c.Bool("all"))
	fmt.Fprintf(&b, "\nWith --yes:\n")
	for i, step := range planSteps(p) {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, step)
	}
	writeLoaders(&b, p.Reload)
	b.WriteString("\n")
	writeChange(&b, "Then change containerd's configuration", o, change, changeErr)
	writeObstacles(&b, p) // at the end, where the operator sees them
	if p.Possible() {
		fmt.Fprintf(&b, "\nNothing was changed. To take the snapshots over: %s --yes\n", planCommand(c))
	}
	_, err := io.WriteString(a.out, b.String())
	return err
}

// inTheWay describes the number of obstacles and of damaged snapshots of a plan.
func inTheWay(p plan.Plan) string {
	var what []string
	if n := len(p.Obstacles); n > 0 {
		what = append(what, plural(n, "obstacle"))
	}
	if n := p.Damaged(); n > 0 {
		what = append(what, plural(n, "damaged snapshot")+" (--leave-out-damaged adopts the rest)")
	}
	return strings.Join(what, " and ")
}

func writeObstacles(b *strings.Builder, p plan.Plan) {
	if len(p.Obstacles) == 0 {
		return
	}
	b.WriteString("\nObstacles:\n")
	for _, o := range p.Obstacles {
		fmt.Fprintf(b, "  %s: %s\n", printable(o.Subject), printable(o.Text))
		writeRemedy(b, o.Remedy)
	}
}

// planSteps are the steps of --yes, in order.
func planSteps(p plan.Plan) []string {
	o := p.Options
	dir := filepath.Join(o.Config.Root, "adopt")
	steps := []string{
		"copy the three databases to " + printable(filepath.Join(dir, "backup")),
		"build thinsnap's store in " + printable(dir),
	}
	switch {
	case p.Reload == nil:
	case p.Reload.LVM != "":
		steps = append(steps, "have the pool zero new blocks: lvchange --zero y "+printable(p.Reload.LVM))
	default:
		steps = append(steps, "have the pool zero new blocks: load its table without skip_block_zeroing")
	}
	built := printable(filepath.Join(o.RootPath, o.Pool+".db"))
	steps = append(steps, "rename "+built+" and metadata.db next to it to *.adopted, so that the built-in cannot start")
	if n := len(p.Idle); n > 0 {
		steps = append(steps, fmt.Sprintf("deactivate %s that nothing uses", plural(n, "mapped device")))
	}
	return append(steps,
		fmt.Sprintf("rename the snapshotter %s to %s in containerd's database, in one transaction", printable(o.From),
			printable(o.Proxy)),
		"install thinsnap's store",
	)
}

// writeLoaders lists the files that would revert the pool's table at the next boot.
func writeLoaders(b *strings.Builder, r *plan.Reload) {
	if r == nil || len(r.Loaders) == 0 {
		return
	}
	b.WriteString("\nAt the next boot these files would load the pool with skip_block_zeroing, and thinsnap would not open it.\n" +
		"Remove the option from the table, and reduce the number of options before it by one:\n")
	for _, file := range r.Loaders {
		fmt.Fprintf(b, "  %s\n", printable(file))
	}
}

// writeChange writes the patch of containerd's configuration, or the reason why it is unknown.
func writeChange(b *strings.Builder, title string, o plan.Options, change setup.Difference, err error) {
	switch {
	case err != nil:
		fmt.Fprintf(b, "%s by hand (docs/migration.md), because the patch is unknown: %s\n", title,
			printable(oneLine(err)))
	case change.Patch == "":
		fmt.Fprintf(b, "containerd's configuration, %s, needs no change.\n", printable(o.ContainerdConfig))
	default:
		fmt.Fprintf(b, "%s (- is the old line, + the new one):\n%s", title, change.Patch)
	}
}

// sameCommand is the command line for a recorded adoption, without its action.
func sameCommand(c *cli.Command) string { return commandWith(c, "config", "containerd-config") }

// planCommand is the command line for a new adoption, without its action.
func planCommand(c *cli.Command) string {
	line := commandWith(c, "config", "containerd-config", "containerd-root", "root-path", "pool", "name")
	if c.Bool("leave-out-damaged") {
		line += " --leave-out-damaged"
	}
	return line
}

// commandWith is the command with the given options that are set.
func commandWith(c *cli.Command, options ...string) string {
	line := c.FullName()
	for _, name := range options {
		if c.IsSet(name) {
			line += " --" + name + " " + printable(c.String(name))
		}
	}
	return line
}

func began(r adopt.Record) string { return r.Began.UTC().Format(time.DateTime + " UTC") }

// printAdopted prints the result of an adoption, and the next steps. The reload may be unknown.
func (a *app) printAdopted(c *cli.Command, o plan.Options, r adopt.Record, reload *plan.Reload) error {
	change, err := switchOf(o).Forward(o.ContainerdConfig)
	if c.Bool("json") {
		return printJSON(a.out, newAdoptedReport(o, r, change, err))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Adopted from the pool %s on %s: %s. Left out: %d. Kept volumes (thinsnap leftovers): %d.\n\n",
		printable(r.Pool), r.Ended.UTC().Format(time.DateTime+" UTC"), plural(r.Snapshots, "snapshot"), r.Left, r.Kept)
	b.WriteString("Next:\n")
	for i, step := range slices.Concat(configureFirst(change, err, sameCommand(c)+" | patch -d / -p1"), []string{
		"systemctl enable --now thinsnap",
		"systemctl start containerd",
		"thinsnap check",
		"thinsnap ls",
	}) {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, step)
	}
	fmt.Fprintf(&b, "To go back, until an adopted snapshot is removed: %s --undo\n", sameCommand(c))
	writeLoaders(&b, reload)
	b.WriteString("\n")
	writeChange(&b, "Change containerd's configuration", o, change, err)
	_, err = io.WriteString(a.out, b.String())
	return err
}

// configureFirst is the step that changes containerd's configuration; none if nothing changes.
func configureFirst(change setup.Difference, err error, command string) []string {
	switch {
	case err != nil:
		return []string{"change containerd's configuration by hand"}
	case change.Patch == "":
		return nil
	}
	return []string{"change containerd's configuration as below, without which containerd 2.x does not work; by a command:\n" +
		"     " + command}
}

// printUndone prints the next steps after an undo.
func (a *app) printUndone(o plan.Options) error {
	var b strings.Builder
	change, err := switchOf(o).Back(o.ContainerdConfig)
	b.WriteString("The snapshots are the built-in's again.\n\nNext:\n")
	steps := []string{"systemctl disable --now thinsnap.socket thinsnap", "systemctl start containerd"}
	if err != nil || change.Patch != "" {
		steps = slices.Insert(steps, 0, "change containerd's configuration back, as below")
	}
	for i, step := range steps {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, step)
	}
	b.WriteString("\n")
	writeChange(&b, "Change containerd's configuration back", o, change, err)
	_, err = io.WriteString(a.out, b.String())
	return err
}
