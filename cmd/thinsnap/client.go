package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func (a *app) clientCommand() *cli.Command {
	return &cli.Command{
		Name:  "client",
		Usage: "decide which containerd may use the snapshots",
		Commands: []*cli.Command{
			{
				Name:  "accept",
				Usage: "let containerd remove the snapshots from before its data was lost",
				Description: "If containerd's data was wiped, or is older than the snapshots, containerd does not know them and would remove\n" +
					"them. thinsnap keeps them until this command. Then containerd's next garbage collection removes them.",
				Flags:  []cli.Flag{jsonFlag()},
				Action: a.decideClient((*admin.Client).AcceptClient),
			},
			{
				Name:  "reset",
				Usage: "forget containerd's process and proxy name, so that another can use the snapshots",
				Description: "Only one process at a time can use the snapshots. Use this command if that process cannot be stopped, or if the\n" +
					"proxy plugin has another name now. The next process that calls is the client.",
				Flags:  []cli.Flag{jsonFlag()},
				Action: a.decideClient((*admin.Client).ResetClient),
			},
		},
	}
}

// decideClient returns the action of a decision, which prints the client that there is then.
func (a *app) decideClient(decide func(*admin.Client, context.Context) (admin.StoreClient, error)) cli.ActionFunc {
	return withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
		client, err := newClient(c)
		if err != nil {
			return err
		}
		decided, err := decide(client, ctx)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(a.out, decided)
		}
		return printRows(a.out, clientRows(&decided))
	})
}

// clientRows describes the client.
func clientRows(c *admin.StoreClient) []row {
	return []row{
		{"Client", clientName(c)},
		{" Snapshots Kept From Before", decimal(c.KeptSnapshots)},
		{" Refused Calls of Others", refusedCalls(c)},
	}
}

func clientName(c *admin.StoreClient) string {
	switch {
	case c.Since.IsZero():
		return "none yet"
	case c.Unseen:
		return "process unknown, as thinsnap is not in the host's PID name space: it cannot refuse a second client, nor " +
			"keep snapshots from a containerd whose data was lost; proxy plugin " + printable(c.Proxy)
	case !c.Alive:
		return fmt.Sprintf("process %d has ended; proxy plugin %s", c.PID, printable(c.Proxy))
	default:
		return fmt.Sprintf("process %d, %s; proxy plugin %s", c.PID, printable(c.Program), printable(c.Proxy))
	}
}

func refusedCalls(c *admin.StoreClient) string {
	if c.RefusedCalls == 0 {
		return "0"
	}
	return fmt.Sprintf("%d, the last of %s", c.RefusedCalls, printable(c.LastRefused))
}
