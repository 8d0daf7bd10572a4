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

// app is the state that all commands share.
type app struct {
	out, errOut io.Writer
	in          *os.File // nil without an input
	terminal    bool     // out is a terminal
	colour      palette
	backend     backend
}

const description = `thinsnap gives every image layer and every container a thin volume of one device-mapper pool.

"thinsnap serve" is the daemon that containerd talks to. The other commands talk to the daemon over its
admin socket, which only root can use.

Exit codes: 0 success, 1 failure, 2 invalid command line, 3 no daemon answers, 78 invalid configuration or root.`

// usageError is an error in the command line.
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
			&cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE`",
				DefaultText: config.DefaultPath + ", if it exists"},
			&cli.StringFlag{Name: "admin-address", Usage: "talk to the daemon on this `SOCKET`", DefaultText: "as configured"},
		},
		Commands: []*cli.Command{
			a.serveCommand(), a.infoCommand(), a.lsCommand(), a.treeCommand(), a.inspectCommand(), a.diffCommand(),
			a.checkCommand(), a.forkCommand(), a.leftoversCommand(), a.topCommand(), a.pageCommand(), a.poolCommand(),
			a.setupCommand(), a.doctorCommand(), a.adoptCommand(), a.clientCommand(), a.configCommand(), a.versionCommand(),
			a.completionCommand(), a.completeCommand(),
		},
		// run reports all errors.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
	complete(root)
	return root
}

// complete makes every command report an invalid command line in one line, without the help text.
func complete(c *cli.Command) {
	c.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		text := strings.Replace(err.Error(), "flag provided but not defined: -", "unknown option --", 1)
		return usagef("%s; see \"%s --help\"", text, c.FullName())
	}
	if c.Action == nil {
		c.Action = group
	}
	for _, sub := range c.Commands {
		complete(sub)
	}
}

// group is the action of a command that only has subcommands. It prints the help, or fails for an
// unknown subcommand.
func group(_ context.Context, c *cli.Command) error {
	if c.Args().Present() {
		return usagef("unknown command %q; see \"%s --help\"", c.Args().First(), c.FullName())
	}
	if c == c.Root() {
		return cli.ShowRootCommandHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// withArgs wraps an action that takes minimum to maximum arguments.
func withArgs(minimum, maximum int, action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		usage := strings.TrimSpace(c.FullName() + " [options] " + c.ArgsUsage)
		switch n := c.Args().Len(); {
		case n < minimum:
			return usagef("missing argument; usage: %s", usage)
		case n > maximum:
			return usagef("unexpected argument %q; usage: %s", c.Args().Get(maximum), usage)
		}
		return action(ctx, c)
	}
}

// jsonFlag is for commands whose output scripts may read.
func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON; sizes are in bytes"}
}

// configuration reads the file that the command line names, or the default file if it exists.
func configuration(c *cli.Command) (config.Config, error) {
	if c.IsSet("config") {
		return config.Load(c.String("config"))
	}
	return config.LoadOptional(config.DefaultPath)
}

// newClient returns a client of the daemon that the command line or the configuration names.
func newClient(c *cli.Command) (*admin.Client, error) {
	if c.IsSet("admin-address") {
		return admin.NewClient(c.String("admin-address")), nil
	}
	cfg, err := configuration(c)
	if err != nil {
		return nil, err
	}
	return admin.NewClient(cfg.AdminAddress), nil
}
