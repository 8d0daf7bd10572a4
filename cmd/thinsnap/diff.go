package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func (a *app) diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "list the paths that a snapshot changes in its parent",
		ArgsUsage: "KEY",
		Description: resolveHelp + "\n\n" +
			"Prints a line for each path that was added (A), changed (C) or deleted (D). A deleted directory stands for\n" +
			"its whole content. A snapshot in use is compared as it is at this moment. It takes longer with more\n" +
			"changes, and on xfs with more files.",
		Flags: []cli.Flag{jsonFlag()},
		Action: withArgs(1, 1, func(ctx context.Context, c *cli.Command) error {
			client, err := newClient(c)
			if err != nil {
				return err
			}
			key, err := resolve(ctx, client, c.Args().First())
			if err != nil {
				return err
			}
			difference, err := client.Diff(ctx, key)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(a.out, difference)
			}
			return a.printDifference(difference.Changes)
		}),
	}
}

func (a *app) printDifference(changes []admin.Change) error {
	letters := map[string]string{admin.ChangeAdded: "A", admin.ChangeChanged: "C", admin.ChangeDeleted: "D"}
	for _, change := range changes {
		path := change.Path
		if change.PathBytes != nil {
			path = string(change.PathBytes)
		}
		if _, err := fmt.Fprintln(a.out, letters[change.Kind], printable(path)); err != nil {
			return err
		}
	}
	return nil
}
