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

type app struct {
	out, errOut io.Writer
	in          *os.File // nil without a standard input
	configFile  string   // the default of --config
	terminal    bool     // out is a terminal
	colour      palette
	backend     backend
}

const description = `thinsnap gives every image layer and every container a thin volume of one device-mapper pool.

"thinsnap serve" is the daemon that containerd talks to. Commands that need the daemon talk to it over
its admin socket, which only root can use.

Exit codes: 0 success, 1 failure, 2 invalid command line, 3 no daemon answers, 78 invalid configuration or root.`

type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// command returns the root of the command line.
func (a *app) command() *cli.Command {
	root := &cli.Command{
		Name:        "thinsnap",
		Usage:       "a containerd snapshotter on device-mapper thin provisioning",
		Description: description,
		Version:     readBuild().Version,
		Writer:      a.out,
		ErrWriter:   a.errOut,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE`", Value: a.configFile,
				DefaultText: config.DefaultPath + ", if it exists"},
			&cli.StringFlag{Name: "admin-address", Usage: "talk to the daemon on this `SOCKET`", DefaultText: "as configured"},
		},
		Commands: []*cli.Command{
			a.serveCommand(), a.infoCommand(), a.lsCommand(), a.treeCommand(), a.inspectCommand(), a.diffCommand(),
			a.checkCommand(), a.forkCommand(), a.leftoversCommand(), a.topCommand(), a.pageCommand(), a.poolCommand(),
			a.setupCommand(), a.doctorCommand(), a.nodeCommand(), a.adoptCommand(), a.clientCommand(), a.configCommand(),
			a.versionCommand(),
			a.completionCommand(), a.completeCommand(),
		},
		// run reports all errors.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
	complete(root)
	return root
}

// helpCommand replaces the library's help command, whose error for an unknown command has another
// form and exit code.
func helpCommand(of *cli.Command) *cli.Command {
	return &cli.Command{
		Name:      "help",
		Aliases:   []string{"h"},
		Usage:     "show help for a command",
		ArgsUsage: "[COMMAND...]",
		Hidden:    true,
		Action: func(ctx context.Context, c *cli.Command) error {
			parent, of := of, of
			for _, word := range c.Args().Slice() {
				sub := of.Command(word)
				if sub == nil {
					return unknownCommand(of, word)
				}
				parent, of = of, sub
			}
			switch of {
			case c.Root():
				return cli.ShowRootCommandHelp(of)
			case parent:
				return cli.ShowSubcommandHelp(of)
			}
			return cli.ShowCommandHelp(ctx, parent, of.Name)
		},
	}
}

// complete prepares a command and its subcommands: each reports an invalid command line in one
// line, without the help text.
func complete(c *cli.Command) {
	c.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		text := strings.Replace(err.Error(), "flag provided but not defined: -", "unknown option --", 1)
		return usagef("%s; see \"%s --help\"", text, c.FullName())
	}
	if c.Action == nil {
		c.Action = group
	}
	if len(c.Commands) == 0 {
		c.HideHelpCommand = true
		return
	}
	for _, sub := range c.Commands {
		complete(sub)
	}
	c.Commands = append(c.Commands, helpCommand(c))
}

// group is the action of a command that only has subcommands. It prints the help, or fails for an
// unknown subcommand.
func group(_ context.Context, c *cli.Command) error {
	if c.Args().Present() {
		return unknownCommand(c, c.Args().First())
	}
	if c == c.Root() {
		return cli.ShowRootCommandHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// unknownCommand is the error for a word that is not a subcommand of c. It suggests a similar one.
func unknownCommand(c *cli.Command, word string) error {
	hint := ""
	if meant := similar(c, word); meant != "" {
		hint = fmt.Sprintf(" (did you mean %q?)", meant)
	}
	return usagef("unknown command %q%s; see \"%s --help\"", word, hint, c.FullName())
}

// similar returns the subcommand most similar to a word, or "".
func similar(c *cli.Command, word string) string {
	usual := map[string]string{"list": "ls", "ps": "ls", "df": "info", "status": "info", "show": "inspect", "rm": "remove"}
	best, least := "", max(1, len(word)/3)+1
	for _, sub := range c.Commands {
		if sub.Hidden {
			continue
		}
		if usual[word] == sub.Name || len(word) > 2 && strings.HasPrefix(sub.Name, word) {
			return sub.Name
		}
		if n := edits(word, sub.Name); n < least {
			best, least = sub.Name, n
		}
	}
	return best
}

// edits returns the edit distance between two words, in bytes.
func edits(from, to string) int {
	row := make([]int, len(to)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(from) {
		before := row[0]
		row[0] = i + 1
		for j := range len(to) {
			changed := before
			if from[i] != to[j] {
				changed++
			}
			before = row[j+1]
			row[j+1] = min(changed, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(to)]
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

// jsonFlag is the flag of commands whose output is for scripts, too.
func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON; sizes are in bytes"}
}

// configuration reads the file of --config, or the default file if it exists.
func configuration(c *cli.Command) (config.Config, error) {
	if c.IsSet("config") {
		return config.Load(c.String("config"))
	}
	return config.LoadOptional(c.String("config"))
}

// newClient returns a client of the daemon that the command line or the configuration selects.
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
