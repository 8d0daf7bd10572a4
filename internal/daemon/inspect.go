package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Inspect implements admin.Backend.
func (d *Daemon) Inspect(ctx context.Context, key string) (admin.Inspection, error) {
	var rec, parent metadata.Snapshot
	inspection, lost := admin.Inspection{}, false
	key, err := metadata.ReadKey(key)
	if err != nil {
		return inspection, err
	}
	err = d.store.View(ctx, func(tx *metadata.Tx) (err error) {
		if rec, err = tx.Get(key); err != nil {
			return err
		}
		lost = tx.HasWritesLost(rec)
		ancestors, err := tx.Parents(key)
		for _, a := range ancestors {
			inspection.Chain = append(inspection.Chain, metadata.ShowKey(a.Key))
		}
		if len(ancestors) > 0 {
			parent = ancestors[0]
		}
		return err
	})
	if err != nil {
		return admin.Inspection{}, err
	}
	keeps, err := d.keeps(ctx)
	if err != nil {
		return admin.Inspection{}, err
	}
	inspection.Snapshot = wireSnapshot(rec)
	inspection.Kept, inspection.WritesLost = keeps(rec), lost
	id := thin.ID(rec.VolumeID)
	inspection.Device, err = d.mappedDevice(admin.RoleThin, d.pool.VolumeName(id))
	if errors.Is(err, devmapper.ErrNotFound) {
		inspection.Device, err = admin.Device{Role: admin.RoleThin, Name: d.pool.VolumeName(id)}, nil
	}
	if err != nil {
		return admin.Inspection{}, err
	}
	d.measure(ctx, &inspection, rec, parent)
	below, err := d.poolDevice()
	inspection.Device.Below = []admin.Device{below}
	return inspection, err
}

// measure adds the space of a snapshot. Sizes that cannot be read, for example if the pool is
// missing, are unknown.
func (d *Daemon) measure(ctx context.Context, i *admin.Inspection, rec, parent metadata.Snapshot) {
	if i.Kind == admin.KindView { // a View has no volume
		mapped := uint64(parent.Usage.Bytes)
		i.Used, i.Exclusive, i.Shared, i.MappedBytes = new(uint64), new(uint64), &mapped, &mapped
		return
	}
	if usage, err := d.snapshotter.UsageOf(ctx, rec, parent.VolumeID); err == nil {
		shared := usage.Mapped - usage.Own
		i.Used, i.Shared, i.MappedBytes = &usage.Own, &shared, &usage.Mapped
	}
	if exclusive, err := d.snapshotter.ExclusiveOf(ctx, rec); err == nil {
		i.Exclusive = &exclusive
	}
}

// poolDevice describes the pool and the devices below it.
func (d *Daemon) poolDevice() (admin.Device, error) {
	dev, err := d.mappedDevice(admin.RolePool, d.pool.Name())
	if err != nil {
		return dev, err
	}
	backing, err := d.pool.Backing()
	if err != nil {
		return dev, err
	}
	dev.Below = []admin.Device{
		lowerDevice(admin.RoleData, backing.DataDevice, backing.DataPath, backing.DataFile, backing.DataDisks),
		lowerDevice(admin.RoleMetadata, backing.MetadataDevice, backing.MetadataPath, backing.MetadataFile,
			backing.MetadataDisks),
	}
	return dev, nil
}

func lowerDevice(role, number, path, file string, disks []string) admin.Device {
	dev := admin.Device{Role: role, Number: number, Path: path, Active: true}
	if file != "" {
		dev.Below = []admin.Device{{Role: admin.RoleFile, Path: file, Active: true}}
	}
	for _, disk := range disks {
		dev.Below = append(dev.Below, admin.Device{Role: admin.RoleDisk, Path: disk, Active: true})
	}
	return dev
}

// mappedDevice describes a mapped device, without the devices below it.
func (d *Daemon) mappedDevice(role, name string) (admin.Device, error) {
	dev, table, err := d.control.Table(name)
	if err != nil {
		return admin.Device{}, err
	}
	_, status, err := d.control.Status(name, devmapper.StatusOptions{NoFlush: true})
	if err != nil {
		return admin.Device{}, err
	}
	return admin.Device{
		Role:      role,
		Name:      dev.Name,
		UUID:      dev.UUID,
		Number:    dev.Number(),
		Path:      devmapper.NodePath(dev.Name),
		Active:    dev.Live,
		ReadOnly:  dev.ReadOnly,
		Suspended: dev.Suspended,
		OpenCount: dev.OpenCount,
		Table:     lines(table),
		Status:    lines(status),
	}, nil
}

func lines(targets []devmapper.Target) []string {
	var all []string
	for _, t := range targets {
		all = append(all, fmt.Sprintf("%d %d %s %s", t.Start, t.Length, t.Type, t.Params))
	}
	return all
}
