package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
)

func (a *app) configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print, check or convert a configuration",
		Commands: []*cli.Command{
			{
				Name:  "default",
				Usage: "print a configuration file with every key, its default and a comment",
				Action: withArgs(0, 0, func(context.Context, *cli.Command) error {
					_, err := io.WriteString(a.out, config.DefaultFile())
					return err
				}),
			},
			{
				Name:      "check",
				Usage:     "check a configuration file",
				ArgsUsage: "[FILE]",
				Action:    withArgs(0, 1, a.checkConfig),
			},
			{
				Name:      "from-docker",
				Usage:     "convert the options of Docker's devicemapper driver to a configuration file",
				ArgsUsage: "DAEMON.JSON",
				Action:    withArgs(1, 1, a.configFromDocker),
			},
			{
				Name:      "from-containerd",
				Usage:     "convert the section of containerd's built-in devmapper snapshotter to a configuration file",
				ArgsUsage: "FILE",
				Description: "FILE is containerd's configuration, mostly /etc/containerd/config.toml, in version 1 to 4. Its " +
					"imports are read, too. The output has a comment for each key that has no counterpart or another meaning.",
				Action: withArgs(1, 1, a.configFromContainerd),
			},
		},
	}
}

// checkConfig checks the file that the argument or --config names, else the default file.
func (a *app) checkConfig(_ context.Context, c *cli.Command) error {
	file := c.Args().First()
	if file == "" {
		file = c.String("config")
	}
	if file == "" {
		file = config.DefaultPath
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			_, err = fmt.Fprintf(a.out, "%s: no such file; the defaults apply\n", file)
			return err
		}
	}
	if _, err := config.Load(file); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out, "%s: OK\n", file)
	return err
}

func (a *app) configFromDocker(_ context.Context, c *cli.Command) error {
	file := c.Args().First()
	from, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text, err := config.FromDocker(from)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	_, err = io.WriteString(a.out, text)
	return err
}

func (a *app) configFromContainerd(_ context.Context, c *cli.Command) error {
	from, err := setup.Load(c.Args().First())
	if err != nil {
		return err
	}
	text, err := config.FromContainerd(from)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Args().First(), err)
	}
	_, err = io.WriteString(a.out, text)
	return err
}
