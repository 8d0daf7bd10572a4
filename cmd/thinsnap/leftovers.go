package main

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func (a *app) leftoversCommand() *cli.Command {
	return &cli.Command{
		Name:  "leftovers",
		Usage: "list volumes that the store does not know and a client may have written to",
		Description: "A pool has such volumes if the store is older than the pool, for example after a backup was restored.\n" +
			"They are kept until \"thinsnap leftovers remove\". SIZE is the end of the last mapped block.\n\n" +
			"After \"thinsnap adopt devmapper\", they include the volumes of containerd's devmapper that no snapshot\n" +
			"needs.",
		Flags: []cli.Flag{jsonFlag()},
		Commands: []*cli.Command{{
			Name:        "remove",
			Usage:       "delete volumes that the store does not know, with their data",
			ArgsUsage:   "ID...",
			Description: "Deletes the volumes with these ids in the background.",
			Action:      withArgs(1, math.MaxInt, a.removeLeftovers),
		}},
		Action: a.listLeftovers,
	}
}

func (a *app) listLeftovers(ctx context.Context, c *cli.Command) error {
	if c.Args().Present() {
		return unknownCommand(c, c.Args().First())
	}
	client, err := newClient(c)
	if err != nil {
		return err
	}
	leftovers, err := client.Leftovers(ctx)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(a.out, admin.LeftoverList{Leftovers: leftovers})
	}
	return a.printLeftovers(leftovers)
}

func (a *app) printLeftovers(leftovers []admin.Leftover) error {
	lines := [][]string{{"ID", "MAPPED", "SIZE", "FOUND"}}
	for _, l := range leftovers {
		lines = append(lines, []string{decimal(uint64(l.DeviceID)), size(l.Mapped), size(l.Size),
			l.Found.UTC().Format(time.DateTime)})
	}
	return a.printTable(lines, false)
}

func (a *app) removeLeftovers(ctx context.Context, c *cli.Command) error {
	var ids []uint32
	for _, arg := range c.Args().Slice() {
		id, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			return usagef("%q is not the id of a leftover; see \"thinsnap leftovers\"", arg)
		}
		ids = append(ids, uint32(id))
	}
	client, err := newClient(c)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := client.RemoveLeftover(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
