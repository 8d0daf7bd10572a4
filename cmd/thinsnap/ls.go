package main

import (
	"context"
	"slices"
	"strconv"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// noTruncFlag disables the shortening of long keys on a terminal. Without a terminal, keys are
// never shortened.
func noTruncFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten keys on a terminal"}
}

func (a *app) keyWriter(c *cli.Command) func(string) string {
	if a.terminal && !c.Bool("no-trunc") {
		return func(key string) string { return printable(shortKey(key)) }
	}
	return printable
}

func (a *app) lsCommand() *cli.Command {
	return &cli.Command{
		Name:  "ls",
		Usage: "list the snapshots, with the images, containers and pods that they belong to",
		Flags: []cli.Flag{jsonFlag(), noTruncFlag()},
		Action: withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
			snapshots, err := a.listOwned(ctx, c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(a.out, snapshotList{snapshots})
			}
			key := a.keyWriter(c)
			lines := [][]string{{"KEY", "KIND", "DEVICE", "SIZE", "USED", "EXCLUSIVE", "LOST WRITES", "CLIENT", "BELONGS TO"}}
			for _, s := range snapshots {
				lines = append(lines, []string{
					key(s.Key), a.colour.kind(s.Kind), deviceID(s.DeviceID), size(s.Size), sizeIfKnown(s.Used),
					sizeIfKnown(s.Exclusive), a.lostWrites(s), s.Client, ownerText(s.Owner),
				})
			}
			if !slices.ContainsFunc(snapshots, func(s owned) bool { return s.WritesLost }) {
				deleteColumn(lines, "LOST WRITES")
			}
			if !ofSeveral(snapshots) {
				deleteColumn(lines, "CLIENT")
			}
			return a.printTable(lines, c.Bool("no-trunc"))
		}),
	}
}

func (a *app) lostWrites(s owned) string {
	if s.WritesLost {
		return a.colour.red("possible")
	}
	return "-"
}

func deleteColumn(lines [][]string, header string) {
	at := slices.Index(lines[0], header)
	for i := range lines {
		lines[i] = slices.Delete(lines[i], at, at+1)
	}
}

// ofSeveral reports whether the snapshots belong to more than one client.
func ofSeveral(snapshots []owned) bool {
	return slices.ContainsFunc(snapshots, func(s owned) bool { return s.Client != snapshots[0].Client })
}

// snapshotList is the JSON of "ls".
type snapshotList struct {
	Snapshots []owned `json:"snapshots"`
}

// list returns all snapshots of the daemon. Labels are only in JSON output.
func list(ctx context.Context, c *cli.Command) ([]admin.Snapshot, error) {
	client, err := newClient(c)
	if err != nil {
		return nil, err
	}
	return client.Snapshots(ctx, c.Bool("json"))
}

func deviceID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
