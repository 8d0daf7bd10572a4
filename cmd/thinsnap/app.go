package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
)

// app is what the commands share.
type app struct {
	out, errOut io.Writer
	in          *os.File // nil if nothing is read
	terminal    bool     // out is one
	colour      palette
	backend     backend
}

const description = `thinsnap gives every image layer and every container a thin volume of one device-mapper pool.

"thinsnap serve" is the daemon that containerd talks to. The other commands ask it over its admin
socket, which is for root.

Exit codes: 0 success, 1 failure, 2 wrong command line, 3 no daemon answers.`

// usageError is a fault of the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// command returns the whole command line.
func (a *app) command() *cli.Command {
	root := &cli.Command{
		Name:        "thinsnap",
		Usage:       "a containerd snapshotter on device-mapper thin provisioning",
		Description: description,
		Version:     readBuild().Version,
		Writer:      a.out,
		ErrWriter:   a.errOut,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE`", DefaultText: config.DefaultPath + ", if it is there"},
			&cli.StringFlag{Name: "admin-address", Usage: "ask the daemon on this `SOCKET`", DefaultText: "as configured"},
		},
		Commands: []*cli.Command{
			a.serveCommand(), a.infoCommand(), a.lsCommand(), a.treeCommand(), a.inspectCommand(), a.checkCommand(),
			a.topCommand(), a.pageCommand(), a.poolCommand(),
			a.configCommand(), a.versionCommand(),
			a.completionCommand(), a.completeCommand(),
		},
		// Errors are reported in one place, by run.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
	complete(root)
	return root
}

// complete gives every command the same treatment of wrong command lines: an error, and no page of help over it.
func complete(c *cli.Command) {
	c.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		return usagef("%s: %v; see \"%s --help\"", c.FullName(), err, c.FullName())
	}
	if c.Action == nil {
		c.Action = group
	}
	for _, sub := range c.Commands {
		complete(sub)
	}
}

// group is the action of a command that only has subcommands: help, or an error for one that does not exist.
func group(_ context.Context, c *cli.Command) error {
	if c.Args().Present() {
		return usagef("%s has no command %q; see \"%s --help\"", c.FullName(), c.Args().First(), c.FullName())
	}
	if c == c.Root() {
		return cli.ShowRootCommandHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// taking wraps an action that takes from minimum to maximum arguments.
func taking(minimum, maximum int, action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		if n := c.Args().Len(); n < minimum || n > maximum {
			return usagef("%d arguments; usage: %s", n, strings.TrimSpace(c.FullName()+" [options] "+c.ArgsUsage))
		}
		return action(ctx, c)
	}
}

// jsonFlag is for commands whose output scripts read.
func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON, with sizes in bytes"}
}

// configuration reads the file that the command line names, or the default one if it is there.
func configuration(c *cli.Command) (config.Config, error) {
	if c.IsSet("config") {
		return config.Load(c.String("config"))
	}
	return config.LoadOptional(config.DefaultPath)
}

// client returns a client of the daemon that the command line or the configuration names.
func client(c *cli.Command) (*admin.Client, error) {
	if c.IsSet("admin-address") {
		return admin.NewClient(c.String("admin-address")), nil
	}
	cfg, err := configuration(c)
	if err != nil {
		return nil, err
	}
	return admin.NewClient(cfg.AdminAddress), nil
}
