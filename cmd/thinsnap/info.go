package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/metadata"
)

func (a *app) infoCommand() *cli.Command {
	return &cli.Command{
		Name:  "info",
		Usage: "describe the daemon and its pool, and how full the pool is",
		Flags: []cli.Flag{jsonFlag()},
		Action: withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
			client, err := newClient(c)
			if err != nil {
				return err
			}
			info, err := client.Info(ctx)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(a.out, info)
			}
			return printRows(a.out, infoRows(&info, a.colour))
		}),
	}
}

// infoRows has the fields of "docker info" for devicemapper, under the same names, and further
// ones.
func infoRows(i *admin.Info, colour palette) []row {
	rows := []row{
		{"Version", i.Daemon.Version},
		{"Root Directory", i.Daemon.Root},
		{"Address", i.Daemon.Address},
		{"Uptime", (time.Duration(i.Daemon.UptimeSeconds) * time.Second).String()},
		{"Snapshots", decimal(i.Snapshots.Active + i.Snapshots.View + i.Snapshots.Committed)},
		{" Active", decimal(i.Snapshots.Active)},
		{" View", decimal(i.Snapshots.View)},
		{" Committed", decimal(i.Snapshots.Committed)},
	}
	if i.Devices.WritesLost > 0 {
		rows = append(rows, row{" May Have Lost Writes", colour.red(decimal(i.Devices.WritesLost))})
	}
	rows = append(rows, clientRows(&i.Client)...)
	for n := range i.Clients {
		rows = append(rows, clientRows(&i.Clients[n])...)
	}
	rows = append(rows, poolRows(&i.Pool, colour)...)
	return append(rows,
		row{"Base Device Size", size(i.Filesystem.BaseSize)},
		row{"Base Device UUID", i.Filesystem.BaseUUID},
		row{"Backing Filesystem", i.Filesystem.Type},
		row{"Active Devices", decimal(i.Devices.Active)},
		row{"Spare Devices", decimal(i.Devices.Spares)},
		row{"Frozen Copies", decimal(i.Devices.Frozen)},
		row{"Device IDs Used", decimal(i.Devices.IDsUsed)},
		row{"Device IDs Left", decimal(i.Devices.IDsLeft)},
		row{"Snapshots Left", decimal(i.Devices.SnapshotsLeft)},
		row{"Udev Sync Supported", strconv.FormatBool(i.Driver.UdevSync)},
		row{"Deferred Removal Enabled", strconv.FormatBool(i.Driver.DeferredRemoval)},
		row{"Deferred Removed Device Count", decimal(i.Background.DeferredRemovals)},
		row{"Deferred Deletion Enabled", strconv.FormatBool(i.Driver.DeferredDeletion)},
		row{"Deferred Deleted Device Count", decimal(i.Devices.Trash)},
		row{" In Use", decimal(i.Background.DeferredDeletions)},
		row{"Kept Leftover Count", decimal(i.Devices.Kept)},
		row{"Library Version", i.Driver.Version},
	)
}

// poolRows is the part of infoRows about the pool.
func poolRows(p *admin.Pool, colour palette) []row {
	limit := "none"
	if p.Data.MinFree > 0 {
		limit = size(p.Data.MinFree)
	}
	rows := []row{
		{"Pool Name", p.Name},
		{"Pool Mode", p.Mode},
		{"Pool State", colour.state(p)},
		{"Pool Transaction ID", decimal(p.TransactionID)},
		{"Pool Blocksize", size(p.BlockSize)},
		{"Data file", p.Data.Device},
		{"Metadata file", p.Metadata.Device},
		{"Data loop file", p.Data.LoopFile},
		{"Metadata loop file", p.Metadata.LoopFile},
		{"Data Space Used", colour.level(p.Data.Level, size(p.Data.Used))},
		{"Data Space Total", size(p.Data.Total)},
		{"Data Space Available", colour.level(p.Data.Level, size(p.Data.Available))},
		{"Metadata Space Used", colour.level(p.Metadata.Level, size(p.Metadata.Used))},
		{"Metadata Space Total", size(p.Metadata.Total)},
		{"Metadata Space Available", colour.level(p.Metadata.Level, size(p.Metadata.Available))},
		{"Thin Pool Minimum Free Space", limit},
		{"Thin Pool Autoextend", autoextend(p)},
		{"Thin Pool Extensions", fmt.Sprintf("%d of data, %d of metadata", p.Autoextend.DataExtensions,
			p.Autoextend.MetadataExtensions)},
	}
	if p.NotAllocated != "" {
		rows = append(rows, row{"Thin Pool Not Allocated", p.NotAllocated})
	}
	if p.Overpromised > 0 {
		rows = append(rows, row{"Thin Pool Over-promised", colour.level(admin.LevelShort, size(p.Overpromised))})
	}
	return rows
}

func autoextend(p *admin.Pool) string {
	a := &p.Autoextend
	if a.Stuck != "" {
		return "stuck: " + a.Stuck
	}
	if metadata.Foreign(p.Mode) {
		return "managed externally"
	}
	if a.Threshold >= 100 {
		return "off"
	}
	text := fmt.Sprintf("at %d%% by %d%%", a.Threshold, a.Percent)
	if a.DataLimit > 0 {
		text += ", data up to " + size(a.DataLimit)
	}
	return text
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
