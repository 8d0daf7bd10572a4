package main

import (
	"context"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

func (a *app) setUpDocker(ctx context.Context, c *cli.Command) error {
	record, err := a.openRecord(c, c.Name)
	if err != nil {
		return err
	}
	if c.Bool("undo") {
		return a.undoSetup(c, record, "docker")
	}
	dockerd, err := a.backend.dockerd()
	if err != nil {
		return err
	}
	found, err := a.backend.containerds()
	if err != nil {
		return err
	}
	use, err := dockerd.Uses(found)
	if err != nil {
		return err
	}
	if err := a.setUpForDocker(ctx, c, use); err != nil {
		return err
	}
	files, err := a.setUpDisk(ctx, c, record)
	if err != nil {
		return err
	}
	a.printf("dockerd (%s) reads %s, according to %s.\n", dockerd.Executable, dockerd.Config, dockerd.Source)
	file, err := dockerd.Plan(ctx, proxyName)
	if err != nil {
		return err
	}
	if err := a.change(c, record, append(files, file), func() error { return nil }); err != nil {
		return err
	}
	a.printf("\nNext; the restart of Docker stops its containers, unless live-restore is set, and Docker then shows " +
		"only what is in thinsnap:\n")
	if c.IsSet("disk") {
		a.printf("    systemctl daemon-reload\n")
	}
	a.printf("    systemctl enable --now thinsnap\n    systemctl restart %s\n    systemctl restart %s\n"+
		"    thinsnap doctor\n    docker run --rm busybox echo it works\n", unitName(use, "containerd"),
		strings.TrimSuffix(dockerd.Unit, ".service"))
	return nil
}

// setUpForDocker adds the proxy plugin to Docker's containerd, if it has none. The change is in the
// record of `thinsnap setup containerd`.
func (a *app) setUpForDocker(ctx context.Context, c *cli.Command, use setup.Containerd) error {
	record, err := a.openRecord(c, "containerd")
	if err != nil {
		return err
	}
	cfg, err := configuration(c)
	if err != nil {
		return err
	}
	client, isNew, err := a.clientOf(cfg, setup.System)
	if err != nil {
		return err
	}
	wish := wishOf(c, cfg, client)
	present, err := use.Dump(ctx, use.Config)
	if err == nil && present.Proxies[wish.Proxy].Address == wish.Address {
		return nil
	}
	plan, err := a.planContainerd(ctx, c, use, wish, record)
	if err != nil {
		return err
	}
	var files []journal.File
	if isNew {
		if files, err = setUpClient(c, nil, client); err != nil {
			return err
		}
	}
	return a.change(c, record, append(files, plan.Files...), func() error { return plan.Verify(ctx, use) })
}
