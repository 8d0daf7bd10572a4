package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func (a *app) poolCommand() *cli.Command {
	return &cli.Command{
		Name:  "pool",
		Usage: "make, look at, extend, trim, mend or destroy the pool",
		Commands: []*cli.Command{
			{
				Name:        "create",
				Usage:       "make the pool that the configuration describes, or take it over",
				Description: "\"thinsnap serve\" does the same when it knows of no pool. No daemon may be running on the root.",
				Flags:       []cli.Flag{rootFlag(), &cli.BoolFlag{Name: "dry-run", Usage: "only print the commands; those for a disk name new UUIDs each time"}},
				Action:      taking(0, 0, a.createPool),
			},
			{
				Name:   "status",
				Usage:  "describe the running daemon's pool and how full it is",
				Flags:  []cli.Flag{jsonFlag()},
				Action: taking(0, 0, a.poolStatus),
			},
			{
				Name:  "extend",
				Usage: "make the running daemon's pool larger, while all goes on",
				Description: "SIZE is what the pool is to have, such as 200GiB, or with a plus sign what it is to have more, such as +50GiB. " +
					"A pool cannot be made smaller, and one in mode \"existing\" is for who made it to make larger.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "data", Usage: "`SIZE` of the space for data"},
					&cli.StringFlag{Name: "metadata", Usage: "`SIZE` of the space for metadata"},
					jsonFlag(),
				},
				Action: taking(0, 0, a.extendPool),
			},
			a.trimCommand(),
			a.poolCheckCommand(),
			a.poolRepairCommand(),
			{
				Name:        "destroy",
				Usage:       "remove the pool with all snapshots on it",
				Description: "No daemon may be running on the root, and no snapshot may be mounted. In mode \"existing\" thinsnap's own volumes are removed, and the pool stays.",
				Flags:       []cli.Flag{rootFlag(), &cli.BoolFlag{Name: "yes", Usage: "really do it"}},
				Action:      taking(0, 0, a.destroyPool),
			},
		},
	}
}

// rootFlag is for the commands that work on a stopped daemon's data.
func rootFlag() cli.Flag {
	return &cli.StringFlag{Name: "root", Usage: "work on the data in this `DIR`", DefaultText: "as configured"}
}

// poolConfiguration is the file with the flag --root over it. What the commands on it log is as configured, too.
func (a *app) poolConfiguration(c *cli.Command) (config.Config, error) {
	cfg, err := configuration(c)
	if err != nil {
		return cfg, err
	}
	if c.IsSet("root") {
		cfg.Root = c.String("root")
	}
	return cfg, errors.Join(cfg.Validate(), a.setUpLog(cfg.Log))
}

func (a *app) createPool(ctx context.Context, c *cli.Command) error {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return a.planPool(ctx, cfg)
	}
	pool, err := a.backend.createPool(ctx, cfg)
	if err != nil {
		return err
	}
	return printRows(a.out, poolRows(&pool, a.colour))
}

func (a *app) planPool(ctx context.Context, cfg config.Config) error {
	lines, err := a.backend.planPool(ctx, cfg)
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.out, line); err != nil {
			return err
		}
	}
	return err
}

func (a *app) poolStatus(ctx context.Context, c *cli.Command) error {
	daemon, err := client(c)
	if err != nil {
		return err
	}
	pool, err := daemon.Pool(ctx)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(a.out, pool)
	}
	return printRows(a.out, poolRows(&pool, a.colour))
}

func (a *app) extendPool(ctx context.Context, c *cli.Command) error {
	daemon, err := client(c)
	if err != nil {
		return err
	}
	if c.String("data") == "" && c.String("metadata") == "" {
		return usagef("nothing to do: say how large with --data or --metadata")
	}
	pool, err := daemon.Pool(ctx)
	if err != nil {
		return err
	}
	var want admin.Extension
	for _, device := range []struct {
		flag string
		has  uint64
		want *uint64
	}{
		{"data", pool.Data.Total, &want.Data},
		{"metadata", pool.Metadata.Total, &want.Metadata},
	} {
		if *device.want, err = newSize(c.String(device.flag), device.has); err != nil {
			return usagef("--%s: %v", device.flag, err)
		}
	}
	if pool, err = daemon.ExtendPool(ctx, want); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(a.out, pool)
	}
	return printRows(a.out, poolRows(&pool, a.colour))
}

// newSize reads a size, or with a plus sign what is to be added to the present one; "" is 0.
func newSize(text string, present uint64) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	more, adds := strings.CutPrefix(text, "+")
	var bytes config.Size
	if err := bytes.UnmarshalText([]byte(more)); err != nil {
		return 0, err
	}
	if bytes == 0 {
		return 0, fmt.Errorf("%q is nothing", text)
	}
	if adds {
		return present + uint64(bytes), nil
	}
	return uint64(bytes), nil
}

func (a *app) destroyPool(ctx context.Context, c *cli.Command) error {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return err
	}
	rec, err := a.backend.recordedPool(ctx, cfg)
	if err != nil {
		return err
	}
	what, done := destruction(cfg, rec)
	if !c.Bool("yes") {
		return usagef("%s; to do it, add --yes", what)
	}
	if err := a.backend.destroyPool(ctx, cfg); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, done)
	return err
}

// destruction says what is going to be removed, and that it was. That is what the store knows of: the configuration may have been
// changed since, to begin anew with.
func destruction(cfg config.Config, rec metadata.PoolRecord) (what, done string) {
	switch rec.Mode {
	case "":
		return fmt.Sprintf("this removes the store below %s, which knows of no pool", cfg.Root),
			fmt.Sprintf("the store below %s, which knew of no pool, is removed", cfg.Root)
	case config.ModeExisting:
		what = fmt.Sprintf("this removes all snapshots of %s from the pool %s, which stays", cfg.Root, rec.Existing.Device)
		done = fmt.Sprintf("the snapshots of %s are removed from the pool %s", cfg.Root, rec.Existing.Device)
	case config.ModeDirectLVM:
		what = fmt.Sprintf("this removes pool %s of %s from the disk %s with all snapshots on it", rec.Name, cfg.Root, rec.LVM.Device)
		done = fmt.Sprintf("pool %s on the disk %s is destroyed", rec.Name, rec.LVM.Device)
	default:
		what = fmt.Sprintf("this removes pool %s below %s with all snapshots on it", rec.Name, cfg.Root)
		done = fmt.Sprintf("pool %s is destroyed", rec.Name)
	}
	if !describes(cfg.Pool, rec) {
		instead := fmt.Sprintf(" (it was made in mode %q, which counts; the configuration describes another)", rec.Mode)
		what, done = what+instead, done+instead
	}
	return what, done
}

// describes tells whether the configuration is of the pool that was recorded.
func describes(cfg config.Pool, rec metadata.PoolRecord) bool {
	if rec.Mode != cfg.Mode || rec.Name != cfg.Name {
		return false
	}
	switch rec.Mode {
	case config.ModeExisting:
		return rec.Existing.Device == pool.DeviceName(cfg.Existing.Device)
	case config.ModeDirectLVM:
		return rec.LVM.Device == cfg.DirectLVM.Device
	}
	return true
}
