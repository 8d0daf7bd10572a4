package provision

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// directLVM is the mode of a pool that LVM makes on a disk of its own.
type directLVM struct{}

// New implements Mode.
func (directLVM) New(ctx context.Context, c config.Config) (metadata.PoolRecord, error) {
	rec := metadata.PoolRecord{
		ID:        rand.Text(),
		Mode:      metadata.ModeDirectLVM,
		Name:      c.Pool.Name,
		BlockSize: uint64(c.Pool.BlockSize),
		Created:   now(),
		LVM: metadata.LVMPool{
			Disk:            c.Pool.DirectLVM.Device,
			PVUUID:          pool.NewPVUUID(),
			DataPercent:     uint64(c.Pool.DirectLVM.ThinpPercent),
			MetadataPercent: uint64(c.Pool.DirectLVM.ThinpMetapercent),
		},
	}
	_, err := configuredLVM(rec, c).Plan(ctx, c.Pool.DirectLVM.Force)
	return rec, asPrecondition(err)
}

// Same implements Mode.
func (directLVM) Same(rec metadata.PoolRecord, c config.Config) error {
	d := c.Pool.DirectLVM
	switch {
	case rec.BlockSize != uint64(c.Pool.BlockSize):
		return settingError("pool.block_size", rec.BlockSize, uint64(c.Pool.BlockSize))
	case rec.LVM.Disk != d.Device:
		return settingError("pool.direct_lvm.device", rec.LVM.Disk, d.Device)
	case rec.LVM.DataPercent != uint64(d.ThinpPercent):
		return settingError("pool.direct_lvm.thinp_percent", config.Percent(rec.LVM.DataPercent), d.ThinpPercent)
	case rec.LVM.MetadataPercent != uint64(d.ThinpMetapercent):
		return settingError("pool.direct_lvm.thinp_metapercent", config.Percent(rec.LVM.MetadataPercent), d.ThinpMetapercent)
	}
	return nil
}

// Plan implements Mode.
func (directLVM) Plan(ctx context.Context, rec metadata.PoolRecord, c config.Config) ([]string, error) {
	spec := configuredLVM(rec, c)
	if rec.Complete {
		return nil, asPrecondition(spec.Find(ctx))
	}
	steps, err := spec.Plan(ctx, c.Pool.DirectLVM.Force)
	if err != nil {
		return nil, asPrecondition(err)
	}
	lines := make([]string, 0, len(steps))
	for _, s := range steps {
		lines = append(lines, s.String())
	}
	return lines, nil
}

// Open implements Mode.
func (directLVM) Open(
	ctx context.Context, control *devmapper.Control, rec metadata.PoolRecord, c config.Config,
) (*pool.Pool, metadata.PoolRecord, error) {
	spec := configuredLVM(rec, c)
	if !rec.Complete {
		log.G(ctx).WithField("pool", rec.Name).WithField("disk", rec.LVM.Disk).Info("making a direct-lvm pool")
		var err error
		if spec, err = spec.Create(ctx, c.Pool.DirectLVM.Force); err != nil {
			return nil, rec, asPreconditionOf(rec, err)
		}
	}
	p, err := spec.Open(ctx, control, rec.Complete)
	if err != nil {
		return p, rec, asPreconditionOf(rec, err)
	}
	if err := EndDestruction(c.Root); err != nil {
		return p, rec, err
	}
	rec.LVM.VGUUID, rec.LVM.LVUUID, rec.Complete = spec.VGUUID, spec.LVUUID, true
	return p, rec, nil
}

// OpenLoaded implements Mode.
func (directLVM) OpenLoaded(control *devmapper.Control, rec metadata.PoolRecord) (*pool.Pool, error) {
	if rec.LVM.LVUUID == "" {
		return nil, fmt.Errorf("pool %s is not made yet: %w", rec.Name, devmapper.ErrNotFound)
	}
	return lvmSpec(rec).OpenLoaded(control)
}

// Files implements Mode.
func (directLVM) Files(metadata.PoolRecord) []string { return nil }

// RootFiles implements Mode.
func (directLVM) RootFiles() []string { return []string{destroying} }

// ReadMetadata implements Mode. LVM activates the metadata volume, read-only, until read returns.
func (directLVM) ReadMetadata(ctx context.Context, rec metadata.PoolRecord, read func(*thinmeta.Metadata) error) error {
	return lvmSpec(rec).ReadMetadata(ctx, read)
}

// CheckMetadata implements Mode. LVM activates the metadata volume, read-only, for the check.
func (directLVM) CheckMetadata(ctx context.Context, rec metadata.PoolRecord) (report repair.Report, err error) {
	err = lvmSpec(rec).OnMetadata(ctx, func(path string) (err error) {
		report, err = repair.Check(ctx, path)
		return err
	})
	return report, asPrecondition(err)
}

// RepairableMetadata implements Mode.
func (directLVM) RepairableMetadata(_ context.Context, rec metadata.PoolRecord) (repair.Metadata, error) {
	lines, old := lvmSpec(rec).RepairLines()
	return repair.Metadata{}, fmt.Errorf("the pool was made by LVM, which keeps its metadata: "+
		"if `thinsnap pool check` finds damage, repair it with `%s`, which leaves the old metadata in %s; "+
		"then start thinsnap, and run `thinsnap check`: %w",
		strings.Join(lines, " && "), old, errdefs.ErrNotImplemented)
}

// Destruction implements Mode.
func (directLVM) Destruction(rec metadata.PoolRecord, root string) (will, done string) {
	name, disk := rec.Name, rec.LVM.Disk
	return fmt.Sprintf("this removes pool %s of %s, made on disk %s, with all its snapshots", name, root, disk),
		fmt.Sprintf("destroyed pool %s, made on disk %s", name, disk)
}

// Growth implements Mode.
func (directLVM) Growth(c config.Config) pool.Growth { return growth(c) }

// ExtendGrace implements Mode: LVM's program needs time to clean up.
func (directLVM) ExtendGrace() time.Duration { return program.Grace }

func lvmSpec(rec metadata.PoolRecord) pool.LVMSpec {
	return pool.LVMSpec{
		ID:              rec.ID,
		Name:            rec.Name,
		BlockBytes:      rec.BlockSize,
		Device:          rec.LVM.Disk,
		PVUUID:          rec.LVM.PVUUID,
		DataPercent:     rec.LVM.DataPercent,
		MetadataPercent: rec.LVM.MetadataPercent,
		VGUUID:          rec.LVM.VGUUID,
		LVUUID:          rec.LVM.LVUUID,
	}
}

// configuredLVM is lvmSpec with the settings that may change after the pool is created.
func configuredLVM(rec metadata.PoolRecord, c config.Config) pool.LVMSpec {
	spec := lvmSpec(rec)
	spec.Threshold, spec.ExtendPercent = uint64(c.Pool.AutoextendThreshold), uint64(c.Pool.AutoextendPercent)
	return spec
}
