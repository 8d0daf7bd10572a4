package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// proxyName is thinsnap's name in containerd's configuration.
const proxyName = "thinsnap"

const runtimeUsage = "make thinsnap the snapshotter of the runtimes `NAMES`, separated by commas"

func (a *app) setupCommand() *cli.Command {
	return &cli.Command{
		Name:  "setup",
		Usage: "configure containerd, k3s or Docker to use thinsnap, or undo that",
		Commands: []*cli.Command{{
			Name:  "containerd",
			Usage: "add the proxy plugin thinsnap to containerd",
			Description: "Finds containerd's configuration and version by its process or unit. Writes a file that the configuration\n" +
				"imports, and adds the import to the main file if necessary; it keeps a copy of the main file. In\n" +
				"containerd 1.x a plugin's section replaces those of earlier files, so the new file repeats the whole\n" +
				"section. Tests the changes on copies first (`containerd config dump`), and changes nothing if other settings\n" +
				"would change. An earlier run's --default and --runtime are undone unless repeated; its --disk stays.\n" +
				"After an interruption, run it again, or with --undo.",
			Flags:  setupFlags(),
			Action: withArgs(0, 0, a.alone(a.setUpContainerd)),
		}, {
			Name:  "k3s",
			Usage: "add the proxy plugin thinsnap to the containerd of k3s or RKE2",
			Description: "Works as for containerd. k3s and RKE2 write their configuration at each start. With containerd 2.x it imports\n" +
				"a directory, which gets the new file. With containerd 1.x the new file is a template that begins with the\n" +
				"template of k3s or RKE2. If a containerd with its own unit is set up, too, k3s's containerd becomes a\n" +
				"further client, with an entry of [[clients]] in thinsnap's configuration and its own socket.",
			Flags:  setupFlags(),
			Action: withArgs(0, 0, a.alone(a.setUpContainerd)),
		}, {
			Name:  "docker",
			Usage: "have Docker store its images and containers in thinsnap",
			Description: "Needs Docker 24 or newer, and a containerd with its own unit. Adds the proxy plugin to that containerd, as\n" +
				"\"thinsnap setup containerd\" does, and sets features.containerd-snapshotter and storage-driver in Docker's\n" +
				"daemon.json. Until --undo, Docker does not show the images and containers of another storage driver.\n" +
				"--undo does not change containerd: run \"thinsnap setup containerd --undo\" after it.",
			Flags:  changeFlags(),
			Action: withArgs(0, 0, a.alone(a.setUpDocker)),
		}},
	}
}

// setupFlags are the flags for containerd and for k3s.
func setupFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "containerd-config", Usage: "change containerd's configuration in this `FILE`",
			DefaultText: "the one that containerd uses"},
		&cli.BoolFlag{Name: "default", Usage: "make thinsnap the snapshotter of all pods"},
		&cli.StringSliceFlag{Name: "runtime", Usage: runtimeUsage},
		&cli.BoolFlag{Name: "now", Usage: "also enable and start thinsnap, and restart containerd; containers keep running"},
	}, changeFlags()...)
}

// changeFlags are the flags of all commands that change the configuration of another program.
func changeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "disk", Usage: "have thinsnap create its pool on this blank `DISK`, with LVM",
			DefaultText: "as configured"},
		&cli.BoolFlag{Name: "dry-run", Usage: "print the changes as a patch, without secrets, and change nothing"},
		&cli.BoolFlag{Name: "undo", Usage: "undo the changes of this command"},
	}
}

// alone wraps an action that may change files: it fails while another one runs, unless the action
// is a dry run.
func (a *app) alone(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) (err error) {
		if c.Bool("dry-run") {
			return action(ctx, c)
		}
		release, err := journal.Lock(a.backend.setupLock, c.FullName())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
		return action(ctx, c)
	}
}

// setUpContainerd is the action of the commands for a containerd.
func (a *app) setUpContainerd(ctx context.Context, c *cli.Command) error {
	record, err := a.openRecord(c, c.Name)
	if err != nil {
		return err
	}
	kind := setup.Kind(c.Name)
	found, err := a.backend.containerds()
	if err != nil {
		return err
	}
	use, err := choose(found, kind, c.String("containerd-config"))
	if c.Bool("undo") {
		return a.undoSetup(c, record, unitName(use, c.Name))
	}
	if err != nil {
		return err
	}
	cfg, err := configuration(c)
	if err != nil {
		return err
	}
	client, isNew, err := a.clientOf(cfg, kind)
	if err != nil {
		return err
	}
	plan, err := a.planContainerd(ctx, c, use, wishOf(c, cfg, client), record)
	if err != nil {
		return err
	}
	files, err := a.setUpDisk(ctx, c, record)
	if err == nil && isNew {
		files, err = setUpClient(c, files, client)
	}
	if err != nil {
		return err
	}
	err = a.change(c, record, append(files, plan.Files...), func() error { return plan.Verify(ctx, use) })
	if err != nil {
		return err
	}
	for _, note := range plan.Notes {
		a.printf("Note: %s.\n", note)
	}
	return a.next(ctx, c, use, isNew)
}

// planContainerd plans the proxy plugin of a containerd.
func (a *app) planContainerd(
	ctx context.Context, c *cli.Command, use setup.Containerd, wish setup.Wish, record *journal.Record,
) (setup.Plan, error) {
	release, err := use.Release(ctx)
	if err != nil {
		return setup.Plan{}, err
	}
	a.printf("containerd %s (%s) reads %s, according to %s.\n", release, use.Executable, use.Config, use.Source)
	if use.Kind == setup.K3s {
		return use.PlanK3s(ctx, release, wish, record, c.FullName())
	}
	return use.Plan(ctx, release, wish, record, "thinsnap setup containerd")
}

// unitName returns the unit to restart, without its suffix.
func unitName(use setup.Containerd, otherwise string) string {
	return cmp.Or(strings.TrimSuffix(use.Unit, ".service"), otherwise)
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

func (a *app) openRecord(c *cli.Command, name string) (*journal.Record, error) {
	if err := oneOf(c, "now", "dry-run"); err != nil {
		return nil, err
	}
	return journal.Open(a.setupRecord(name))
}

func (a *app) setupRecord(name string) string {
	return filepath.Join(a.backend.setupRecords, name+".json")
}

// choose returns the containerd to configure.
func choose(found []setup.Containerd, kind setup.Kind, file string) (setup.Containerd, error) {
	if file == "" {
		one, err := setup.Only(found, kind)
		if err == nil && one.Config == "" {
			err = fmt.Errorf("%s takes containerd's options from its environment: start containerd, or name its "+
				"configuration with --containerd-config", one.Source)
		}
		return one, err
	}
	file, err := filepath.Abs(file)
	if err != nil {
		return setup.Containerd{}, err
	}
	for _, one := range found {
		if one.Config == file && one.Kind == setup.Docker {
			return one, fmt.Errorf("dockerd writes %s at each start: use `thinsnap setup docker`: %w", file,
				errdefs.ErrFailedPrecondition)
		}
		if one.Config == file {
			return one, nil
		}
	}
	one, err := setup.Only(found, kind)
	one.Config, one.Source = file, "--containerd-config"
	return one, err
}

func wishOf(c *cli.Command, cfg config.Config, client config.Client) setup.Wish {
	return setup.Wish{
		Switch: setup.Switch{
			Proxy: proxyName, Address: client.Address, Root: cfg.Root, Platform: "linux/" + runtime.GOARCH,
		},
		Default: c.Bool("default"), Runtimes: c.StringSlice("runtime"),
	}
}

// change makes changes and prints the names of the files. With --dry-run, it only prints a patch.
func (a *app) change(c *cli.Command, record *journal.Record, files []journal.File, check func() error) error {
	files = slices.DeleteFunc(files, journal.File.Unchanged)
	if len(files) == 0 {
		a.printf("Nothing to do: everything is set up.\n")
		return nil
	}
	if c.Bool("dry-run") {
		a.printf("\n%s", setup.Patch(files))
		return nil
	}
	if err := record.Apply(files, check); err != nil {
		return err
	}
	for _, f := range files {
		verb := "Wrote"
		if f.Before != nil {
			verb = "Changed"
		}
		a.printf("%s %s.\n", verb, f.Path)
	}
	if copies := record.Backups(); len(copies) > 0 {
		a.printf("Kept a copy of the previous file in %s.\n", strings.Join(copies, ", "))
	}
	return nil
}

func (a *app) undoSetup(c *cli.Command, record *journal.Record, service string) error {
	if record.Empty() {
		a.printf("Nothing to undo.\n")
		return nil
	}
	files, left, err := record.Undo()
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		a.printf("%s", setup.Patch(files))
		for _, path := range left {
			a.printf("%s was edited since, and is kept.\n", path)
		}
		return nil
	}
	err = record.TakeBack()
	for _, f := range files {
		verb := "Removed"
		if f.After != nil {
			verb = "Changed back"
		}
		a.printf("%s %s.\n", verb, f.Path)
	}
	if err != nil {
		return err
	}
	isChanged := func(path string) bool {
		return slices.ContainsFunc(files, func(f journal.File) bool { return f.Path == path })
	}
	next := "systemctl restart " + service
	if isChanged(a.backend.diskDropIn) {
		next = "systemctl daemon-reload; " + next
	} else if isChanged(c.String("config")) {
		next += "; systemctl restart thinsnap"
	}
	a.printf("\nNext, when no container of %s uses thinsnap: %s\n", service, next)
	return nil
}

// next starts and restarts the units, or prints the commands for that. Then it prints the commands
// that run a container.
func (a *app) next(ctx context.Context, c *cli.Command, use setup.Containerd, isNewClient bool) error {
	unit := unitName(use, c.Name)
	var commands [][]string
	if c.IsSet("disk") {
		commands = append(commands, []string{"systemctl", "daemon-reload"})
	}
	if c.IsSet("disk") || isNewClient {
		commands = append(commands, []string{"systemctl", "enable", "thinsnap"}, []string{"systemctl", "restart", "thinsnap"})
	} else {
		commands = append(commands, []string{"systemctl", "enable", "--now", "thinsnap"})
	}
	commands = append(commands, []string{"systemctl", "restart", unit})
	if c.Bool("now") {
		for _, command := range commands {
			if err := a.backend.execute(ctx, command...); err != nil {
				return err
			}
		}
		a.printf("Started thinsnap, and restarted %s.\n", unit)
		commands = nil
	}
	ctr := "ctr"
	if use.Kind == setup.K3s && strings.HasPrefix(unit, "k3s") {
		ctr = "k3s ctr"
	} else if use.Address != setup.DefaultAddress {
		ctr += " --address " + use.Address
	}
	const image = "docker.io/library/busybox:latest"
	a.printf("\nNext:\n")
	for _, command := range commands {
		a.printf("    %s\n", strings.Join(command, " "))
	}
	a.printf("    thinsnap doctor\n")
	a.printf("    %s image pull --snapshotter %s %s\n", ctr, proxyName, image)
	a.printf("    %s run --rm --snapshotter %s %s first echo it works\n", ctr, proxyName, image)
	return nil
}
