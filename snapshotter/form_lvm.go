package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/metadata"
)

// ModeDirectLVM is the mode of a pool that LVM makes on a disk of its own.
const ModeDirectLVM = "direct-lvm"

// DirectLVMConfig describes the direct-lvm pool that belongs to a store.
type DirectLVMConfig struct {
	// Name of LVM's volume group; the names of the volumes' devices begin with it.
	Name string
	// BlockBytes is the block size; see pool.LVMSpec.
	BlockBytes uint64
	// Device is the path of the disk.
	Device string
	// DataPercent and MetadataPercent are the shares of the disk; see pool.LVMSpec.
	DataPercent, MetadataPercent uint64
	// Threshold and ExtendPercent are for LVM's profile; see pool.LVMSpec. They
	// may change after the pool is made.
	Threshold, ExtendPercent uint64
	// Force has what is on the disk overwritten when the pool is made.
	Force bool
}

// OpenDirectLVMPool brings the direct-lvm pool that belongs to store into the
// kernel, or makes it if the store has none yet. What is to be made is recorded
// first, so that a crash in the middle is made good by calling it again.
//
// It is errdefs.ErrFailedPrecondition if the pool cannot be the one that the
// store belongs to, if the configuration describes another one, or if the disk
// is not free.
func OpenDirectLVMPool(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, config DirectLVMConfig,
) (*pool.Pool, error) {
	rec, err := poolRecord(ctx, store)
	switch {
	case errdefs.IsNotFound(err):
		rec = newLVMRecord(config)
		// Nothing is recorded of a pool that is refused.
		if _, err := pool.PlanLVM(ctx, configured(rec, config), config.Force); err != nil {
			return nil, refused(err)
		}
		if err := store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) }); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	if err := sameLVMPool(rec, config); err != nil {
		return nil, err
	}
	spec := configured(rec, config)
	if !rec.Formed {
		log.G(ctx).WithField("pool", rec.Name).WithField("disk", rec.LVM.Device).Info("making a direct-lvm pool")
		if spec, err = pool.CreateLVM(ctx, spec, config.Force); err != nil {
			return nil, refused(err)
		}
	}
	p, err := pool.OpenLVM(ctx, control, spec, rec.Formed)
	if err != nil || rec.Formed {
		return p, refused(err)
	}
	rec.LVM.VGUUID, rec.LVM.LVUUID, rec.Formed = spec.VGUUID, spec.LVUUID, true
	return p, store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) })
}

// PlanDirectLVMPool returns what OpenDirectLVMPool would do to make the pool, as
// lines of shell, and its refusals. It changes nothing. A store that is nil is
// one that knows of no pool.
func PlanDirectLVMPool(ctx context.Context, store *metadata.Store, config DirectLVMConfig) ([]string, error) {
	rec := newLVMRecord(config)
	if store != nil {
		known, err := poolRecord(ctx, store)
		if err == nil {
			rec, err = known, sameLVMPool(known, config)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	steps, err := pool.PlanLVM(ctx, configured(rec, config), config.Force)
	if err != nil {
		return nil, refused(err)
	}
	lines := make([]string, 0, len(steps))
	for _, s := range steps {
		lines = append(lines, s.String())
	}
	return lines, nil
}

func newLVMRecord(config DirectLVMConfig) metadata.PoolRecord {
	return metadata.PoolRecord{
		ID:        rand.Text(),
		Mode:      ModeDirectLVM,
		Name:      config.Name,
		BlockSize: config.BlockBytes,
		Created:   now(),
		LVM: metadata.LVMVolume{
			Device:          config.Device,
			PVUUID:          pool.NewPVUUID(),
			DataPercent:     config.DataPercent,
			MetadataPercent: config.MetadataPercent,
		},
	}
}

// sameLVMPool refuses a configuration that describes another pool than the one
// that is there, or that was begun.
func sameLVMPool(rec metadata.PoolRecord, config DirectLVMConfig) error {
	switch {
	case rec.Mode != ModeDirectLVM:
		return differs("pool.mode", rec.Mode, ModeDirectLVM)
	case rec.Name != config.Name:
		return differs("pool.name", rec.Name, config.Name)
	case rec.BlockSize != config.BlockBytes:
		return differs("pool.block_size", rec.BlockSize, config.BlockBytes)
	case rec.LVM.Device != config.Device:
		return differs("pool.direct_lvm.device", rec.LVM.Device, config.Device)
	case rec.LVM.DataPercent != config.DataPercent:
		return differs("pool.direct_lvm.thinp_percent", rec.LVM.DataPercent, config.DataPercent)
	case rec.LVM.MetadataPercent != config.MetadataPercent:
		return differs("pool.direct_lvm.thinp_metapercent", rec.LVM.MetadataPercent, config.MetadataPercent)
	}
	return nil
}

// lvmSpec is what the store knows of the pool.
func lvmSpec(rec metadata.PoolRecord) pool.LVMSpec {
	return pool.LVMSpec{
		ID:              rec.ID,
		Name:            rec.Name,
		BlockBytes:      rec.BlockSize,
		Device:          rec.LVM.Device,
		PVUUID:          rec.LVM.PVUUID,
		DataPercent:     rec.LVM.DataPercent,
		MetadataPercent: rec.LVM.MetadataPercent,
		VGUUID:          rec.LVM.VGUUID,
		LVUUID:          rec.LVM.LVUUID,
	}
}

// configured is lvmSpec with what is not the store's to know.
func configured(rec metadata.PoolRecord, config DirectLVMConfig) pool.LVMSpec {
	spec := lvmSpec(rec)
	spec.Threshold, spec.ExtendPercent = config.Threshold, config.ExtendPercent
	return spec
}

// refused puts a class to the errors of a pool that cannot be the right one, or
// cannot be made.
func refused(err error) error {
	for _, kind := range []error{
		pool.ErrWrongPool, pool.ErrNameTaken, pool.ErrDeviceTaken, pool.ErrNotActive, os.ErrNotExist, unix.ENOTBLK,
	} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%w; nothing was changed: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return err
}
