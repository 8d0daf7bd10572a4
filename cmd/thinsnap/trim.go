package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// poolTrim is the JSON of "pool trim".
type poolTrim struct {
	Snapshots []admin.Trimming `json:"snapshots"`
	// UsedBefore and UsedAfter are the used data space of the pool.
	UsedBefore uint64 `json:"used_before_bytes"`
	UsedAfter  uint64 `json:"used_after_bytes"`
}

func (a *app) trimCommand() *cli.Command {
	return &cli.Command{
		Name:      "trim",
		Usage:     "return freed blocks of containers to the pool, and to the file or disk below it",
		ArgsUsage: "[KEY...]",
		Description: "Trims the running daemon's mounted active snapshots, or the named ones, one at a time. Continues after\n" +
			"failures, and reports them at the end. It can be interrupted at any time. Blocks that were freed in the\n" +
			"last seconds may stay until the next run. TRIMMED is the free space that the file system discarded, on\n" +
			"ext4 without the space that it had discarded before. UNMAPPED is the space that the volume no longer\n" +
			"maps; blocks that other snapshots share stay in use.",
		Flags:  []cli.Flag{jsonFlag(), noTruncFlag()},
		Action: a.trimPool,
	}
}

func (a *app) trimPool(ctx context.Context, c *cli.Command) error {
	client, err := newClient(c)
	if err != nil {
		return err
	}
	pool, err := client.Pool(ctx)
	if err != nil {
		return err
	}
	before := pool.Data.Used
	keys, named := c.Args().Slice(), c.Args().Present()
	if !named {
		if keys, err = activeKeys(ctx, client); err != nil {
			return err
		}
	}
	snapshots, failed := a.trimEach(ctx, client, keys, a.keyWriter(c), named)
	if pool, err = client.Pool(ctx); err != nil {
		return errors.Join(append(failed, err)...)
	}
	done := poolTrim{Snapshots: snapshots, UsedBefore: before, UsedAfter: pool.Data.Used}
	return errors.Join(append(failed, a.printTrim(c, &done))...)
}

// trimEach trims one snapshot after the other, and continues after failures. A snapshot that cannot
// be trimmed is a failure only if it was named.
func (a *app) trimEach(
	ctx context.Context, client *admin.Client, keys []string, key func(string) string, named bool,
) (done []admin.Trimming, failed []error) {
	done = []admin.Trimming{}
	for i := range keys {
		wait := a.waiting(fmt.Sprintf("trimming %d of %d, %s", i+1, len(keys), key(keys[i])))
		trimming, err := client.Trim(ctx, keys[i])
		wait()
		switch {
		case err == nil:
			done = append(done, trimming)
		case !named && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)):
		case ctx.Err() != nil, errors.Is(err, admin.ErrNoDaemon), errdefs.IsNotImplemented(err):
			// Without a daemon, or in a pool without discards, the others would fail as well.
			return done, append(failed, err)
		default:
			failed = append(failed, err)
		}
	}
	return done, failed
}

func activeKeys(ctx context.Context, client *admin.Client) ([]string, error) {
	snapshots, err := client.Snapshots(ctx, false)
	var keys []string
	for _, s := range snapshots {
		if s.Kind == admin.KindActive {
			keys = append(keys, s.Key)
		}
	}
	return keys, err
}

func (a *app) printTrim(c *cli.Command, done *poolTrim) error {
	if c.Bool("json") {
		return printJSON(a.out, done)
	}
	if len(done.Snapshots) > 0 {
		key := a.keyWriter(c)
		lines := [][]string{{"KEY", "DEVICE", "TRIMMED", "UNMAPPED", "ENDED EARLY"}}
		for _, s := range done.Snapshots {
			lines = append(lines, []string{key(s.Key), deviceID(s.DeviceID), size(s.Trimmed), size(s.Unmapped),
				orDash(s.Stopped)})
		}
		if err := a.printTable(lines, c.Bool("no-trunc")); err != nil {
			return err
		}
	}
	return printRows(a.out, []row{
		{"Snapshots Trimmed", decimal(uint64(len(done.Snapshots)))},
		{"Data Space Used Before", size(done.UsedBefore)},
		{"Data Space Used", size(done.UsedAfter)},
	})
}
