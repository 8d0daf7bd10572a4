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
				Usage:     "check a configuration file, and list all errors in it",
				ArgsUsage: "[FILE]",
				Description: "FILE may be - for the standard input. Default: the file of --config, or the default file.\n" +
					"\"thinsnap pool create --dry-run\" also checks the disk and the kernel, \"thinsnap doctor\" the machine.",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
				Action: withArgs(0, 1, a.checkConfig),
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
				Description: "FILE is containerd's configuration, usually /etc/containerd/config.toml, in version 1 to 4, with its\n" +
					"imports. The output has a comment for each key that has no counterpart or another meaning.",
				Action: withArgs(1, 1, a.configFromContainerd),
			},
		},
	}
}

// configCheck is the JSON of `config check`.
type configCheck struct {
	File     string   `json:"file"` // "-" for the standard input
	Missing  bool     `json:"missing"`
	Problems []string `json:"problems"`
}

// checkConfig checks the file of the argument or of --config, or the default file.
func (a *app) checkConfig(_ context.Context, c *cli.Command) error {
	file := c.Args().First()
	optional := file == "" && !c.IsSet("config")
	if file == "" {
		file = c.String("config")
	}
	err := a.checkFile(file)
	found := configCheck{File: file, Problems: []string{}, Missing: optional && errors.Is(err, fs.ErrNotExist)}
	if found.Missing {
		err = nil
	}
	var invalid *config.Error
	if errors.As(err, &invalid) {
		for _, p := range invalid.Problems {
			found.Problems = append(found.Problems, p.Error())
		}
	} else if err != nil {
		return err
	}
	switch {
	case c.Bool("json"):
		err = errors.Join(err, printJSON(a.out, found))
	case found.Missing:
		_, err = fmt.Fprintf(a.out, "%s: no such file; the defaults apply\n", file)
	case err == nil:
		_, err = fmt.Fprintf(a.out, "%s: OK\n", file)
	}
	return err
}

func (a *app) checkFile(file string) error {
	if file != "-" {
		_, err := config.Load(file)
		return err
	}
	if a.in == nil {
		return errors.New("there is no standard input")
	}
	text, err := io.ReadAll(a.in)
	if err != nil {
		return err
	}
	_, err = config.Parse(text)
	var invalid *config.Error
	if errors.As(err, &invalid) {
		return &config.Error{File: "standard input", Problems: invalid.Problems}
	}
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
