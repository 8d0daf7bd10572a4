package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/internal/setup"
)

func (a *app) adoptCommand() *cli.Command {
	return &cli.Command{
		Name:  "adopt",
		Usage: "take over the images and containers of another snapshotter, in its pool",
		Commands: []*cli.Command{{
			Name:  "devmapper",
			Usage: "take over the images and containers of containerd's built-in devmapper snapshotter",
			Description: "containerd must be stopped, and no container may run. Without --yes, nothing changes: the command prints\n" +
				"the plan for each snapshot, the obstacles, the steps of --yes, and the changes to make in containerd's\n" +
				"configuration, which it only reads. --yes neither copies nor changes data in the pool. After an\n" +
				"interruption, run it with --yes to complete the adoption, or with --undo to go back. --undo gives the\n" +
				"snapshots back to the built-in one, with everything that containers have written since. It refuses if an\n" +
				"adopted snapshot was removed, or a new one exists.\n" +
				"Exit code 1: there is an obstacle, or the adoption failed.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "containerd-config", Usage: "read containerd's configuration from `FILE`", Value: setup.DefaultConfig},
				&cli.StringFlag{Name: "containerd-root", Usage: "use containerd's data in this `DIR`",
					DefaultText: "root in containerd's configuration"},
				&cli.StringFlag{Name: "root-path", Usage: "use the built-in snapshotter's databases in this `DIR`",
					DefaultText: "root_path in the built-in snapshotter's section"},
				&cli.StringFlag{Name: "pool", Usage: "adopt from the pool `NAME`",
					DefaultText: "pool_name in the built-in snapshotter's section"},
				&cli.StringFlag{Name: "name", Usage: "adopt for containerd's proxy plugin `PROXY`",
					DefaultText: "the one with thinsnap's address, or thinsnap"},
				&cli.BoolFlag{Name: "leave-out-damaged", Usage: "leave out damaged snapshots, and those made from them"},
				&cli.BoolFlag{Name: "dry-run", Usage: "change nothing, which is the default"},
				&cli.BoolFlag{Name: "yes", Usage: "adopt the snapshots"},
				&cli.BoolFlag{Name: "undo", Usage: "go back to the built-in snapshotter"},
				&cli.BoolFlag{Name: "all", Usage: "list every snapshot, even if there are more than 100"},
				jsonFlag(),
			},
			Action: withArgs(0, 0, a.adoptDevmapper),
		}},
	}
}

func switchOf(o plan.Options) setup.Switch {
	return setup.Switch{
		Proxy: o.Proxy, Address: o.Config.Address, Root: o.Config.Root, Platform: "linux/" + runtime.GOARCH,
	}
}

func (a *app) adoptDevmapper(ctx context.Context, c *cli.Command) error {
	if err := oneOf(c, "dry-run", "yes", "undo"); err != nil {
		return err
	}
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return err
	}
	record, err := a.backend.adoption(cfg.Root)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if c.Bool("undo") {
		return a.undoAdoption(ctx, c, cfg, record, err)
	}
	if err != nil || isDestroyed(cfg.Root, record) {
		o, err := ofConfiguration(cfg, c)
		if err != nil {
			return err
		}
		return a.adoptNew(ctx, c, o)
	}
	o := ofRecord(cfg, record, c)
	if named := c.String("pool"); named != "" && named != record.Pool {
		return fmt.Errorf("%s has adopted pool %q, and one root has one pool: for pool %q, name another configuration with "+
			"--config: %w", cfg.Root, record.Pool, named, errdefs.ErrFailedPrecondition)
	}
	switch {
	case record.Phase == adopt.Adopted:
		return a.printAdopted(c, o, record, nil)
	case record.Phase == adopt.Forward && c.Bool("yes"):
		return a.adopt(ctx, c, o)
	}
	return fmt.Errorf("the adoption that began %s is not complete: %w", began(record), unfinished(record))
}

// isDestroyed reports whether `thinsnap pool destroy` has removed the adopted store.
func isDestroyed(root string, r adopt.Record) bool {
	_, err := os.Stat(rootdir.Store(root))
	return r.Phase == adopt.Adopted && errors.Is(err, fs.ErrNotExist)
}

// unfinished is the remedy for an interrupted adoption.
func unfinished(r adopt.Record) error {
	if r.Phase == adopt.Back {
		return fmt.Errorf("it is being undone: add --undo to complete that: %w", errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("add --yes to complete it, or --undo to go back: %w", errdefs.ErrFailedPrecondition)
}

// oneOf fails if more than one of the flags is set.
func oneOf(c *cli.Command, flags ...string) error {
	set := ""
	for _, name := range flags {
		switch {
		case !c.Bool(name):
		case set != "":
			return usagef("--%s and --%s exclude each other", set, name)
		default:
			set = name
		}
	}
	return nil
}

// ofRecord returns the options of the adoption that a root records.
func ofRecord(cfg config.Config, r adopt.Record, c *cli.Command) plan.Options {
	return plan.Options{
		Config: cfg, ContainerdRoot: r.ContainerdRoot, RootPath: r.RootPath, Pool: r.Pool, From: r.From, Proxy: r.Proxy,
		LeaveOutDamaged: c.Bool("leave-out-damaged"), ContainerdConfig: c.String("containerd-config"),
	}
}

// ofConfiguration returns the options of the adoption that the command line describes, with
// defaults from containerd's configuration.
func ofConfiguration(cfg config.Config, c *cli.Command) (plan.Options, error) {
	o := plan.Options{
		Config: cfg, ContainerdRoot: c.String("containerd-root"), RootPath: c.String("root-path"), Pool: c.String("pool"),
		From: "devmapper", Proxy: c.String("name"), LeaveOutDamaged: c.Bool("leave-out-damaged"),
		ContainerdConfig: c.String("containerd-config"),
	}
	from, err := setup.Load(o.ContainerdConfig)
	switch {
	case err == nil:
		from = from.At(cmp.Or(o.ContainerdRoot, from.Root))
		o.ContainerdRoot = from.Root
		o.RootPath = cmp.Or(o.RootPath, from.Devmapper.RootPath)
		o.Pool = cmp.Or(o.Pool, from.Devmapper.PoolName)
		o.Proxy = cmp.Or(o.Proxy, from.ProxyAt(cfg.Address))
	case o.ContainerdRoot == "" || o.RootPath == "" || o.Pool == "":
		return o, fmt.Errorf("--containerd-root, --root-path and --pool are not all given, and there is no default: %w", err)
	}
	o.Proxy = cmp.Or(o.Proxy, "thinsnap")
	for _, dir := range []*string{&o.ContainerdRoot, &o.RootPath} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return o, err
		}
	}
	return o, nil
}

// adoptNew plans an adoption, and with --yes executes it.
func (a *app) adoptNew(ctx context.Context, c *cli.Command, o plan.Options) error {
	wait := a.waiting("planning")
	p, err := a.backend.planAdoption(ctx, o)
	wait()
	if err != nil {
		return err
	}
	change, changeErr := switchOf(o).Forward(o.ContainerdConfig)
	if errdefs.IsFailedPrecondition(changeErr) || errdefs.IsInvalidArgument(changeErr) {
		p.Obstacles = append(p.Obstacles, plan.Obstacle{Subject: "containerd's configuration", Text: changeErr.Error()})
	}
	possible := p.Possible()
	if possible && c.Bool("yes") {
		return a.adopt(ctx, c, o)
	}
	if c.Bool("json") {
		err = printJSON(a.out, newAdoptionReport(p, change, changeErr))
	} else {
		err = a.printPlan(c, p, change, changeErr)
	}
	if err != nil || possible {
		return err
	}
	return fmt.Errorf("nothing was changed: %s: %w", inTheWay(p), errdefs.ErrFailedPrecondition)
}

// adopt executes an adoption, and prints the next steps.
func (a *app) adopt(ctx context.Context, c *cli.Command, o plan.Options) error {
	ctx, release := untilSignal(ctx)
	defer release()
	steps := a.out
	if c.Bool("json") {
		steps = a.errOut
	}
	p, err := a.backend.adopt(ctx, o, reportTo(steps))
	if err != nil {
		return err
	}
	record, err := a.backend.adoption(o.Config.Root)
	if err != nil {
		return err
	}
	return a.printAdopted(c, o, record, p.Reload)
}

func (a *app) undoAdoption(ctx context.Context, c *cli.Command, cfg config.Config, r adopt.Record, err error) error {
	for _, name := range []string{"containerd-root", "root-path", "pool", "name", "leave-out-damaged", "json"} {
		if c.IsSet(name) {
			return usagef("--undo undoes the recorded adoption, and does not take --%s", name)
		}
	}
	if err != nil {
		return fmt.Errorf("nothing to undo: %w", err)
	}
	ctx, release := untilSignal(ctx)
	defer release()
	o := ofRecord(cfg, r, c)
	if err := a.backend.undoAdoption(ctx, o, reportTo(a.out)); err != nil {
		return err
	}
	return a.printUndone(o)
}

// reportTo returns a function that prints each step of an adoption when it begins.
func reportTo(w io.Writer) func(step string) {
	return func(step string) { fmt.Fprintln(w, printable(step)) }
}
