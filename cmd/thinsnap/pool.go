package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
)

func (a *app) poolCommand() *cli.Command {
	return &cli.Command{
		Name:  "pool",
		Usage: "create, inspect, extend, trim, repair or destroy the pool",
		Commands: []*cli.Command{
			{
				Name:        "create",
				Usage:       "create the configured pool, or take over an existing one",
				Description: "\"thinsnap serve\" does the same on its first start. No daemon may be running on the root.",
				Flags: []cli.Flag{rootFlag(),
					&cli.BoolFlag{Name: "dry-run", Usage: "only print the commands; those for a disk have new UUIDs each time"}},
				Action: withArgs(0, 0, a.createPool),
			},
			{
				Name:  "status",
				Usage: "describe the running daemon's pool, and how full it is",
				Flags: []cli.Flag{jsonFlag(), &cli.BoolFlag{Name: "check",
					Usage: "also fail if new snapshots are refused, and print the reason: for probes and monitoring"}},
				Action: withArgs(0, 0, a.poolStatus),
			},
			{
				Name:  "extend",
				Usage: "extend the running daemon's pool online",
				Description: "SIZE is the new size, such as 200GiB, or an increase with a plus sign, such as +50GiB.\n" +
					"A pool cannot shrink. Extend a pool in mode \"existing\" with the program that made it.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "data", Usage: "`SIZE` of the data space"},
					&cli.StringFlag{Name: "metadata", Usage: "`SIZE` of the metadata space"},
					jsonFlag(),
				},
				Action: withArgs(0, 0, a.extendPool),
			},
			a.trimCommand(),
			a.poolCheckCommand(),
			a.poolRepairCommand(),
			{
				Name:  "destroy",
				Usage: "remove the pool with all its snapshots",
				Description: "No daemon may be running on the root, and no snapshot may be mounted. In mode \"existing\" only thinsnap's own\n" +
					"volumes are removed, and the pool stays.",
				Flags:  []cli.Flag{rootFlag(), &cli.BoolFlag{Name: "yes", Usage: "confirm the removal"}},
				Action: withArgs(0, 0, a.destroyPool),
			},
		},
	}
}

// rootFlag is the flag of commands on a stopped daemon's root.
func rootFlag() cli.Flag {
	return &cli.StringFlag{Name: "root", Usage: "use the data in this `DIR`", DefaultText: "as configured"}
}

// poolConfiguration returns the configuration with the flag --root applied. It also configures the
// log.
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
	client, err := newClient(c)
	if err != nil {
		return err
	}
	pool, err := client.Pool(ctx)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(a.out, pool)
	} else {
		err = printRows(a.out, poolRows(&pool, a.colour))
	}
	if c.Bool("check") {
		err = errors.Join(err, refusal(&pool))
	}
	return err
}

// refusal returns an error if new snapshots are refused. A daemon of an older version gives no
// reason.
func refusal(p *admin.Pool) error {
	switch {
	case p.Refusal != "":
		return fmt.Errorf("new snapshots are refused: %s", p.Refusal)
	case p.State != admin.StateReadWrite, p.NeedsCheck:
		return fmt.Errorf("the pool is %s: see `thinsnap pool status`", palette(false).state(p))
	}
	return nil
}

func (a *app) extendPool(ctx context.Context, c *cli.Command) error {
	if c.String("data") == "" && c.String("metadata") == "" {
		return usagef("nothing to do: give a size with --data or --metadata")
	}
	// Check the sizes before asking the daemon, which may not run.
	for _, flag := range []string{"data", "metadata"} {
		if _, err := newSize(c.String(flag), 0); err != nil {
			return usagef("--%s: %v", flag, err)
		}
	}
	client, err := newClient(c)
	if err != nil {
		return err
	}
	pool, err := client.Pool(ctx)
	if err != nil {
		return err
	}
	var want admin.Extension
	for _, device := range []struct {
		flag    string
		present uint64
		want    *uint64
	}{
		{"data", pool.Data.Total, &want.Data},
		{"metadata", pool.Metadata.Total, &want.Metadata},
	} {
		if *device.want, err = newSize(c.String(device.flag), device.present); err != nil {
			return usagef("--%s: %v", device.flag, err)
		}
	}
	if pool, err = client.ExtendPool(ctx, want); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(a.out, pool)
	}
	return printRows(a.out, poolRows(&pool, a.colour))
}

// newSize parses a size or, after a plus sign, an increase of the present size. It returns 0 for
// "".
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
		return 0, fmt.Errorf("%q is zero", text)
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
	what, done := provision.Destruction(rec, cfg)
	if !c.Bool("yes") {
		return usagef("%s; to do it, add --yes", what)
	}
	if err := requireNoDaemon(ctx, c); err != nil {
		return err
	}
	if err := a.backend.destroyPool(ctx, cfg); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, done)
	return err
}

// requireNoDaemon fails if a daemon answers with the configured root. A daemon that cannot open its
// pool does not lock the root between its attempts, and would create a new pool.
func requireNoDaemon(ctx context.Context, c *cli.Command) error {
	if c.IsSet("root") {
		return nil
	}
	client, err := newClient(c)
	if err != nil {
		return err
	}
	switch _, err := client.Info(ctx); {
	case errors.Is(err, admin.ErrNoDaemon):
		return nil
	case err != nil && !errors.Is(err, admin.ErrNotOpen):
		return err
	}
	return fmt.Errorf("a daemon is running, and would create a new pool: stop it "+
		"(systemctl stop thinsnap.socket thinsnap): %w", errdefs.ErrFailedPrecondition)
}
