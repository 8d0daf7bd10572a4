package main

import (
	"context"
	"strconv"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// noTruncFlag keeps long keys whole on a terminal. Without a terminal they are always whole.
func noTruncFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten keys on a terminal"}
}

// keyWriter returns the function that formats keys.
func (a *app) keyWriter(c *cli.Command) func(string) string {
	if a.terminal && !c.Bool("no-trunc") {
		return func(key string) string { return printable(shortKey(key)) }
	}
	return printable
}

func (a *app) lsCommand() *cli.Command {
	return &cli.Command{
		Name:  "ls",
		Usage: "list the snapshots",
		Flags: []cli.Flag{jsonFlag(), noTruncFlag()},
		Action: withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
			snapshots, err := list(ctx, c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(a.out, admin.SnapshotList{Snapshots: snapshots})
			}
			key := a.keyWriter(c)
			lines := [][]string{{"KEY", "KIND", "PARENT", "DEVICE", "SIZE", "USED", "EXCLUSIVE"}}
			for _, s := range snapshots {
				lines = append(lines, []string{
					key(s.Key), a.colour.kind(s.Kind), orDash(key(s.Parent)), deviceID(s.DeviceID), size(s.Size), sizeIfKnown(s.Used),
					sizeIfKnown(s.Exclusive),
				})
			}
			return printTable(a.out, a.colour, lines)
		}),
	}
}

// list returns all snapshots of the daemon. They have labels only in JSON.
func list(ctx context.Context, c *cli.Command) ([]admin.Snapshot, error) {
	client, err := newClient(c)
	if err != nil {
		return nil, err
	}
	return client.Snapshots(ctx, c.Bool("json"))
}

func deviceID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
