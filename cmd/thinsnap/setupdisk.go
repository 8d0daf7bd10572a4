package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup/disk"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// setUpDisk returns the changes for a pool on the disk of --disk, if that is set. thinsnap changes
// the disk when it first starts.
func (a *app) setUpDisk(ctx context.Context, c *cli.Command, record *journal.Record) ([]journal.File, error) {
	if !c.IsSet("disk") {
		return nil, nil
	}
	name, stable, err := disk.Stable(c.String("disk"), a.backend.disksByID)
	if err != nil {
		return nil, err
	}
	file, err := disk.Configure(c.String("config"), name)
	if err != nil {
		return nil, err
	}
	if !file.Unchanged() {
		cfg, err := config.Parse(file.After)
		if err != nil {
			return nil, err
		}
		_, err = a.backend.planPool(ctx, cfg)
		if errors.Is(err, pool.ErrDeviceTaken) {
			err = fmt.Errorf("%w; or, if nothing on it is needed, clear it with `wipefs --all %s`", err, name)
		}
		if err != nil {
			return nil, err
		}
		a.printf("thinsnap will create its pool on %s when it first starts.\n", name)
	}
	if !stable {
		a.printf("Note: %s has no name in %s, and may have another name after the next boot: then correct it in %s.\n", name,
			a.backend.disksByID, a.backend.diskDropIn)
	}
	unit, err := disk.Unit(a.backend.diskDropIn, name, record, c.FullName())
	return []journal.File{file, unit}, err
}
