package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// poolTrim is what "pool trim" prints with --json.
type poolTrim struct {
	Snapshots []admin.Trimming `json:"snapshots"`
	// UsedBefore and UsedAfter are the pool's data in use.
	UsedBefore uint64 `json:"used_before"`
	UsedAfter  uint64 `json:"used_after"`
}

func (a *app) trimCommand() *cli.Command {
	return &cli.Command{
		Name:      "trim",
		Usage:     "give what containers have deleted back to the pool, and to the file or disk below it",
		ArgsUsage: "[KEY...]",
		Description: "It works on the running daemon's active snapshots that are mounted, or on those named, one after the other, and\n" +
			"does what fstrim does with a file system. One that fails is in no other's way. It can be interrupted at any time. What was deleted in the last\n" +
			"seconds may stay until the next time. TRIMMED is what a file system has free, as far as the kernel has not told\n" +
			"the device before; UNMAPPED is what its volume held of that.",
		Flags:  []cli.Flag{jsonFlag(), noTruncFlag()},
		Action: a.trimPool,
	}
}

func (a *app) trimPool(ctx context.Context, c *cli.Command) error {
	daemon, err := client(c)
	if err != nil {
		return err
	}
	pool, err := daemon.Pool(ctx)
	if err != nil {
		return err
	}
	before := pool.Data.Used
	keys, named := c.Args().Slice(), c.Args().Present()
	if !named {
		if keys, err = activeKeys(ctx, daemon); err != nil {
			return err
		}
	}
	snapshots, failed := a.trimEach(ctx, daemon, keys, a.keyWriter(c), named)
	if pool, err = daemon.Pool(ctx); err != nil {
		return errors.Join(append(failed, err)...)
	}
	done := poolTrim{Snapshots: snapshots, UsedBefore: before, UsedAfter: pool.Data.Used}
	return errors.Join(append(failed, a.printTrim(c, &done))...)
}

// trimEach trims one snapshot after the other, and goes on after one that fails. One that cannot be trimmed has failed only if it
// was named.
func (a *app) trimEach(
	ctx context.Context, daemon *admin.Client, keys []string, key func(string) string, named bool,
) (done []admin.Trimming, failed []error) {
	done = []admin.Trimming{}
	for i := range keys {
		wait := a.waiting(fmt.Sprintf("trimming %d of %d, %s", i+1, len(keys), key(keys[i])))
		trimming, err := daemon.Trim(ctx, keys[i])
		wait()
		switch {
		case err == nil:
			done = append(done, trimming)
		case !named && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)):
		case ctx.Err() != nil, errors.Is(err, admin.ErrNoDaemon), errdefs.IsNotImplemented(err):
			// Neither without a daemon nor in a pool that takes no discards do the others fare better.
			return done, append(failed, err)
		default:
			failed = append(failed, err)
		}
	}
	return done, failed
}

// activeKeys are the keys of the snapshots that may be mounted and written to.
func activeKeys(ctx context.Context, daemon *admin.Client) ([]string, error) {
	snapshots, err := daemon.Snapshots(ctx)
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
			lines = append(lines, []string{key(s.Key), deviceID(s.DeviceID), size(s.Trimmed), size(s.Unmapped), orDash(s.Stopped)})
		}
		if err := printTable(a.out, a.colour, lines); err != nil {
			return err
		}
	}
	return printRows(a.out, []row{
		{"Snapshots Trimmed", count(uint64(len(done.Snapshots)))},
		{"Data Space Used Before", size(done.UsedBefore)},
		{"Data Space Used", size(done.UsedAfter)},
	})
}
