package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/autoextend"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

var _ admin.Backend = (*Daemon)(nil)

// Info implements admin.Backend.
func (d *Daemon) Info(ctx context.Context) (admin.Info, error) {
	var info admin.Info
	var err error
	if info.Pool, err = d.Pool(ctx); err != nil {
		return admin.Info{}, err
	}
	active, err := d.pool.CountActive(ctx)
	if err != nil {
		return admin.Info{}, err
	}
	version, err := d.control.Version()
	if err != nil {
		return admin.Info{}, err
	}
	info.Driver = admin.Driver{
		Version:          "ioctl " + version.String(),
		UdevSync:         devmapper.UdevRuns(),
		DeferredRemoval:  true,
		DeferredDeletion: true,
	}
	info.Devices.SnapshotsLeft = d.snapshotter.SnapshotsLeft()
	info.Devices.Active = uint64(active)
	spares := d.snapshotter.Spares()
	info.Devices.Spares, info.Spares = spares.Present, admin.Spares{Hits: spares.Taken, Misses: spares.Missed}
	info.Devices.Frozen = uint64(d.snapshotter.CountCopies())
	background, err := d.snapshotter.Background(ctx)
	if err != nil {
		return admin.Info{}, err
	}
	info.Background = admin.Background(background)
	info.Differ = d.differStats()
	if info.Client, info.Clients, err = d.describeClients(ctx); err != nil {
		return admin.Info{}, err
	}
	stats := d.store.Stats()
	info.Store = admin.Store{
		Operations: stats.Operations, Transactions: stats.Transactions, Reads: stats.Reads,
		CommitSeconds: stats.CommitTime.Seconds(), Bytes: stats.FileBytes,
	}
	info.Filesystem = admin.Filesystem{Type: d.config.Filesystem.Type, BaseSize: uint64(d.config.Filesystem.BaseSize)}
	return info, d.store.View(ctx, func(tx *metadata.Tx) error { return readCounts(tx, &info) })
}

// readCounts fills in the store's counters. Its cost does not depend on the store's size: it reads only the kept
// leftovers and the snapshots that may have lost writes.
func readCounts(tx *metadata.Tx, info *admin.Info) error {
	kinds, err := tx.CountByKind()
	if err != nil {
		return err
	}
	trash, err := tx.TrashCount()
	if err != nil {
		return err
	}
	lost, err := tx.WritesLost()
	if err != nil {
		return err
	}
	used, left, err := tx.DeviceIDs()
	if err != nil {
		return err
	}
	base, err := tx.Base(info.Filesystem.Type, info.Filesystem.BaseSize)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	info.Snapshots = countsOf(kinds)
	info.Devices.Trash, info.Devices.Kept = uint64(trash), uint64(tx.KeptCount())
	info.Devices.WritesLost = uint64(len(lost))
	info.Devices.IDsUsed, info.Devices.IDsLeft = uint64(used), uint64(left)
	info.Filesystem.BaseUUID = base.UUID
	return nil
}

// Pool implements admin.Backend.
func (d *Daemon) Pool(ctx context.Context) (admin.Pool, error) {
	status, err := d.pool.Status(ctx)
	if err != nil {
		return admin.Pool{}, err
	}
	lowWater, err := d.dataLowWater(status.BlockBytes)
	if err != nil {
		return admin.Pool{}, err
	}
	backing, err := d.pool.Backing()
	if err != nil {
		return admin.Pool{}, err
	}
	p := admin.Pool{
		Name:          d.pool.Name(),
		UUID:          d.pool.UUID(),
		Mode:          d.config.Pool.Mode,
		State:         poolState(status.Mode),
		NeedsCheck:    status.NeedsCheck,
		TransactionID: status.TransactionID,
		BlockSize:     status.BlockBytes,
		Data:          d.space(status.Data, backing.DataPath, backing.DataFile),
		Metadata:      d.space(status.Metadata, backing.MetadataPath, backing.MetadataFile),
	}
	p.Data.LowWater, p.Metadata.LowWater = lowWater, status.MetadataLowWater*pool.MetadataBlockBytes
	p.Overpromised, p.NotAllocated = status.Overpromised(), d.pool.NotAllocated()
	if d.snapshotter != nil { // CreatePool has no snapshotter
		if err := d.snapshotter.Refusal(ctx); err != nil {
			p.Refusal = err.Error()
		}
	}
	extensions := d.extensions()
	p.Events = extensions.Events
	threshold := uint64(d.config.Pool.AutoextendThreshold)
	if d.stored.Foreign() {
		threshold = 100 // autoextend only warns
	}
	p.Autoextend = admin.Autoextend{
		Threshold:          threshold,
		Percent:            uint64(d.config.Pool.AutoextendPercent),
		DataLimit:          d.stored.Growth(d.config).DataLimit,
		DataExtensions:     extensions.DataExtensions,
		MetadataExtensions: extensions.MetadataExtensions,
		Stuck:              extensions.Stuck,
	}
	return p, nil
}

// space describes one of the pool's devices. MinFree is computed as in the snapshotter: a share of
// the used and available bytes, which may be less than the device's size.
func (d *Daemon) space(s pool.Space, device, file string) admin.Space {
	wire := admin.Space{
		Device: device, LoopFile: file, Used: s.Used, Total: s.Total, Available: s.Available, Holes: s.Holes,
		MinFree: (s.Used + s.Available) * uint64(d.config.Pool.MinFreeSpace) / 100,
	}
	wire.Level = admin.LevelOf(wire)
	return wire
}

// dataLowWater returns the free data space, in bytes, below which the kernel raises an event.
func (d *Daemon) dataLowWater(blockBytes uint64) (uint64, error) {
	_, targets, err := d.control.Table(d.pool.Name())
	if err != nil {
		return 0, err
	}
	if len(targets) != 1 {
		return 0, fmt.Errorf("pool %s has a table with %d targets instead of 1: %w", d.pool.Name(), len(targets),
			errdefs.ErrInternal)
	}
	table, err := thin.ParsePoolTable(targets[0].Params)
	return table.LowWaterBlocks * blockBytes, err
}

// Fill implements admin.Backend.
func (d *Daemon) Fill(ctx context.Context, age time.Duration) (admin.Fill, error) {
	status, err := d.pool.RecentStatus(ctx, age)
	return admin.Fill{
		DataUsed: status.Data.Used, DataTotal: status.Data.Total, DataAvailable: status.Data.Available,
		MetadataUsed: status.Metadata.Used, MetadataTotal: status.Metadata.Total,
	}, err
}

// Trash implements admin.Backend.
func (d *Daemon) Trash(ctx context.Context, limit int) ([]admin.Removed, error) {
	var all []admin.Removed
	err := d.store.View(ctx, func(tx *metadata.Tx) error {
		records, err := tx.TrashSample(limit)
		for _, r := range records {
			all = append(all, admin.Removed{
				Key: metadata.ShowKey(r.Key), Client: clientOf(r.Key), DeviceID: r.VolumeID, Since: r.Since,
			})
		}
		return err
	})
	return all, err
}

// extensions returns the extender's report, or a zero report in a command on a stopped daemon's
// root.
func (d *Daemon) extensions() autoextend.Report {
	if d.extender == nil {
		return autoextend.Report{}
	}
	return d.extender.Report()
}

// ExtendPool implements admin.Backend.
func (d *Daemon) ExtendPool(ctx context.Context, want admin.Extension) (admin.Pool, error) {
	if err := d.extender.Extend(ctx, want.Data, want.Metadata); err != nil {
		return admin.Pool{}, snapshotter.Classify(err)
	}
	return d.Pool(ctx)
}

func poolState(mode thin.Mode) string {
	switch mode {
	case thin.ModeReadWrite:
		return admin.StateReadWrite
	case thin.ModeReadOnly:
		return admin.StateReadOnly
	case thin.ModeOutOfDataSpace:
		return admin.StateOutOfDataSpace
	default:
		return admin.StateFailed
	}
}

// Ioctls implements admin.Backend.
func (d *Daemon) Ioctls() map[string]uint64 { return d.control.CallsByCommand() }

// Snapshots implements admin.Backend.
func (d *Daemon) Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error) {
	var all []admin.Snapshot
	var records []metadata.Snapshot
	walk := d.snapshotter.WalkWithoutLabels
	if labels {
		walk = d.snapshotter.WalkRecords
	}
	keeps, err := d.keeps(ctx)
	if err != nil {
		return nil, err
	}
	lost, err := d.writesLost(ctx)
	if err != nil {
		return nil, err
	}
	err = walk(ctx, func(rec metadata.Snapshot) error {
		snapshot := wireSnapshot(rec)
		snapshot.Kept = keeps(rec)
		snapshot.WritesLost = rec.Kind == snapshots.KindActive && lost[rec.VolumeID]
		all = append(all, snapshot)
		rec.Labels = nil
		records = append(records, rec)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, space := range d.spaces.of(ctx, d.pool, d.snapshotter, records) {
		all[i].Used, all[i].Shared, all[i].Exclusive = space.used, space.shared, space.exclusive
	}
	return all, ctx.Err()
}

// writesLost returns the volumes of active snapshots that may have lost writes.
func (d *Daemon) writesLost(ctx context.Context) (map[uint32]bool, error) {
	lost := make(map[uint32]bool)
	return lost, d.store.View(ctx, func(tx *metadata.Tx) error {
		ids, err := tx.WritesLost()
		for _, id := range ids {
			lost[id] = true
		}
		return err
	})
}

func wireSnapshot(rec metadata.Snapshot) admin.Snapshot {
	kinds := map[snapshots.Kind]string{
		snapshots.KindActive:    admin.KindActive,
		snapshots.KindView:      admin.KindView,
		snapshots.KindCommitted: admin.KindCommitted,
	}
	return admin.Snapshot{
		Key:      metadata.ShowKey(rec.Key),
		Client:   clientOf(rec.Key),
		Kind:     kinds[rec.Kind],
		Parent:   metadata.ShowKey(rec.Parent),
		DeviceID: rec.VolumeID,
		Size:     rec.Size,
		Created:  rec.Created,
		Updated:  rec.Updated,
		Labels:   rec.Labels,
	}
}
