package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
)

func (a *app) clientCommand() *cli.Command {
	return &cli.Command{
		Name:  "client",
		Usage: "decide which containerd may use the snapshots",
		Commands: []*cli.Command{
			{
				Name:      "accept",
				Usage:     "let containerd remove the snapshots from before its data was lost",
				ArgsUsage: "[CLIENT]",
				Description: "If containerd's data was wiped, or is older than the snapshots, containerd does not know them and would\n" +
					"remove them. thinsnap keeps them until this command. Then containerd's next garbage collection removes\n" +
					"them.\n" +
					"CLIENT is the name of a further client ([[clients]] in the configuration).",
				Flags:  []cli.Flag{jsonFlag()},
				Action: a.decideClient((*admin.Client).AcceptClient),
			},
			{
				Name:      "reset",
				Usage:     "forget containerd's process and proxy name, so that another can use the snapshots",
				ArgsUsage: "[CLIENT]",
				Description: "Only one process at a time can use the snapshots. Use this command if that process cannot be stopped, or\n" +
					"if the proxy plugin was renamed. The next process that calls becomes the client.\n" +
					"CLIENT is the name of a further client ([[clients]] in the configuration).",
				Flags:  []cli.Flag{jsonFlag()},
				Action: a.decideClient((*admin.Client).ResetClient),
			},
			{
				Name:      "remove",
				Usage:     "remove all snapshots of a client that is no longer configured",
				ArgsUsage: "CLIENT",
				Description: "The snapshots of a further client stay when its entry is removed from the configuration. This command\n" +
					"removes the client and its snapshots, with their data, if none of them is in use.",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "confirm the removal"}, jsonFlag()},
				Action: withArgs(1, 1, a.removeClient),
			},
		},
	}
}

// decideClient returns the action of a decision. It prints the resulting client.
func (a *app) decideClient(
	decide func(*admin.Client, context.Context, string) (admin.ClientInfo, error),
) cli.ActionFunc {
	return withArgs(0, 1, func(ctx context.Context, c *cli.Command) error {
		client, err := newClient(c)
		if err != nil {
			return err
		}
		decided, err := decide(client, ctx, c.Args().First())
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(a.out, decided)
		}
		return printRows(a.out, clientRows(&decided))
	})
}

func (a *app) removeClient(ctx context.Context, c *cli.Command) error {
	client, err := newClient(c)
	if err != nil {
		return err
	}
	name := c.Args().First()
	info, err := client.Info(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(info.Clients, func(c admin.ClientInfo) bool { return c.Name == name })
	if i >= 0 && !info.Clients[i].Configured && !c.Bool("yes") {
		return usagef("this removes the client %q with its %d snapshots; to do it, add --yes", name,
			total(info.Clients[i].Snapshots))
	}
	removed, err := client.RemoveClient(ctx, name)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(a.out, removed)
	}
	_, err = fmt.Fprintf(a.out, "removed client %s with %d snapshots\n", removed.Name, removed.Snapshots)
	return err
}

func total(n admin.SnapshotCounts) uint64 { return n.Active + n.View + n.Committed }

func clientRows(c *admin.ClientInfo) []row {
	if c.Name == config.DefaultClient {
		return []row{
			{"Client", clientName(c)},
			{" Snapshots Kept From Before", decimal(c.KeptSnapshots)},
			{" Refused Calls of Others", refusedCalls(c)},
		}
	}
	if !c.Configured {
		return []row{
			{"Client " + c.Name, "not configured; \"thinsnap client remove " + c.Name + "\" removes its snapshots"},
			{" Snapshots", decimal(total(c.Snapshots))},
		}
	}
	return []row{
		{"Client " + c.Name, clientName(c)},
		{" Address", c.Address},
		{" Snapshots", decimal(total(c.Snapshots))},
		{" Snapshots Kept From Before", decimal(c.KeptSnapshots)},
		{" Refused Calls of Others", refusedCalls(c)},
	}
}

func clientName(c *admin.ClientInfo) string {
	switch {
	case c.Since.IsZero():
		return "none yet"
	case c.Unseen:
		return "process unknown, as thinsnap is not in the host's PID namespace: it cannot refuse a second client, nor " +
			"keep snapshots from a containerd whose data was lost; proxy plugin " + printable(c.Proxy)
	case !c.Alive:
		return fmt.Sprintf("process %d has ended; proxy plugin %s", c.PID, printable(c.Proxy))
	default:
		return fmt.Sprintf("process %d, %s; proxy plugin %s", c.PID, printable(c.Program), printable(c.Proxy))
	}
}

func refusedCalls(c *admin.ClientInfo) string {
	if c.RefusedCalls == 0 {
		return "0"
	}
	return fmt.Sprintf("%d, the last of %s", c.RefusedCalls, printable(c.LastRefused))
}
