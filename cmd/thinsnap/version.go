package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v3"
)

//nolint:gochecknoglobals // set by the linker: -X main.version=1.2.3 -X main.revision=abcdef
var version, revision string

type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// readBuild returns the values set by the linker, or otherwise those recorded by the toolchain.
func readBuild() build {
	b := build{Version: version, Revision: revision, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if b.Version == "" {
		b.Version = "devel"
		if ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
	}
	if b.Revision == "" && ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Revision = s.Value
			}
		}
	}
	return b
}

func (a *app) versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
		Action: withArgs(0, 0, func(_ context.Context, c *cli.Command) error {
			b := readBuild()
			if c.Bool("json") {
				return printJSON(a.out, b)
			}
			_, err := fmt.Fprintf(a.out, "thinsnap %s\nrevision %s\n%s %s\n", b.Version, orDash(b.Revision), b.Go, b.Platform)
			return err
		}),
	}
}
