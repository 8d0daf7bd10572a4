package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/config"
)

func (a *app) poolCommand() *cli.Command {
	return &cli.Command{
		Name:  "pool",
		Usage: "make, look at or destroy the pool",
		Commands: []*cli.Command{
			{
				Name:        "create",
				Usage:       "make the pool that the configuration describes",
				Description: "\"thinsnap serve\" does the same when it finds no pool. No daemon may be running on the root.",
				Flags:       []cli.Flag{rootFlag()},
				Action:      taking(0, 0, a.createPool),
			},
			{
				Name:   "status",
				Usage:  "describe the running daemon's pool and how full it is",
				Flags:  []cli.Flag{jsonFlag()},
				Action: taking(0, 0, a.poolStatus),
			},
			{
				Name:        "destroy",
				Usage:       "remove the pool with all snapshots on it",
				Description: "No daemon may be running on the root, and no snapshot may be mounted.",
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
	pool, err := a.backend.createPool(ctx, cfg)
	if err != nil {
		return err
	}
	return printRows(a.out, poolRows(&pool, a.colour))
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

func (a *app) destroyPool(ctx context.Context, c *cli.Command) error {
	cfg, err := a.poolConfiguration(c)
	if err != nil {
		return err
	}
	if !c.Bool("yes") {
		return usagef("this removes pool %s below %s with all snapshots on it; to do it, add --yes", cfg.Pool.Name, cfg.Root)
	}
	if err := a.backend.destroyPool(ctx, cfg); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "pool %s is destroyed\n", cfg.Pool.Name)
	return err
}
