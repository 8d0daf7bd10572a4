package provision

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// existing is the mode of a foreign pool, in which thinsnap has volumes.
type existing struct{}

// New implements Mode. LVM activates an inactive LVM pool. The pool must have no volume with an id
// of the range that thinsnap uses.
func (existing) New(ctx context.Context, c config.Config) (_ metadata.PoolRecord, err error) {
	rec := metadata.PoolRecord{
		ID: rand.Text(), Mode: metadata.ModeExisting, Name: c.Pool.Name, Created: now(), Complete: true,
		Existing: metadata.ExistingPool{MappedDevice: pool.DeviceName(c.Pool.Existing.Device)},
	}
	control, err := devmapper.Open()
	if err != nil {
		return rec, err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	spec := existingSpec(rec)
	spec.Device = c.Pool.Existing.Device
	p, found, err := spec.Open(ctx, control)
	if err != nil {
		return rec, asPrecondition(err)
	}
	if err := snapshotter.RequireUnused(ctx, p, metadata.FirstInForeign, metadata.MaxDevice); err != nil {
		return rec, err
	}
	rec.BlockSize, rec.Existing.UUID = found.BlockBytes, found.UUID
	log.G(ctx).WithField("pool", p.Name()).WithField("uuid", p.UUID()).Info("found a foreign pool to use")
	return rec, nil
}

// Same implements Mode.
func (existing) Same(rec metadata.PoolRecord, c config.Config) error {
	if device := pool.DeviceName(c.Pool.Existing.Device); rec.Existing.MappedDevice != device {
		return settingError("pool.existing.device", rec.Existing.MappedDevice, device)
	}
	return nil
}

// Plan implements Mode.
func (existing) Plan(_ context.Context, rec metadata.PoolRecord, _ config.Config) ([]string, error) {
	return []string{fmt.Sprintf("# %s, with UUID %q and blocks of %d bytes, is used as it is",
		devmapper.NodePath(rec.Existing.MappedDevice), rec.Existing.UUID, rec.BlockSize)}, nil
}

// Open implements Mode.
func (existing) Open(
	ctx context.Context, control *devmapper.Control, rec metadata.PoolRecord, _ config.Config,
) (*pool.Pool, metadata.PoolRecord, error) {
	p, _, err := existingSpec(rec).Open(ctx, control)
	return p, rec, asPrecondition(err)
}

// OpenLoaded implements Mode.
func (existing) OpenLoaded(control *devmapper.Control, rec metadata.PoolRecord) (*pool.Pool, error) {
	p, _, err := existingSpec(rec).OpenLoaded(control)
	return p, err
}

// Files implements Mode.
func (existing) Files(metadata.PoolRecord) []string { return nil }

// RootFiles implements Mode.
func (existing) RootFiles() []string { return nil }

// ReadMetadata implements Mode. It fails: thinsnap reads a foreign pool's metadata only through the
// kernel.
func (existing) ReadMetadata(_ context.Context, rec metadata.PoolRecord, _ func(*thinmeta.Metadata) error) error {
	return fmt.Errorf("pool %s: %w: its owner has to activate it", rec.Existing.MappedDevice, pool.ErrNotActive)
}

// CheckMetadata implements Mode.
func (existing) CheckMetadata(context.Context, metadata.PoolRecord) (repair.Report, error) {
	return repair.Report{}, errForeignMetadata
}

// RepairableMetadata implements Mode.
func (existing) RepairableMetadata(context.Context, metadata.PoolRecord) (repair.Metadata, error) {
	return repair.Metadata{}, errForeignMetadata
}

var errForeignMetadata = fmt.Errorf("thinsnap did not make this pool, and neither checks nor repairs its metadata: "+
	"its owner has to (for LVM's, `lvconvert --repair VG/LV` while it is inactive): %w", errdefs.ErrNotImplemented)

// Destruction implements Mode.
func (existing) Destruction(rec metadata.PoolRecord, root string) (will, done string) {
	return fmt.Sprintf("this removes all snapshots of %s from pool %s; the pool stays", root, rec.Existing.MappedDevice),
		fmt.Sprintf("removed all snapshots of %s from pool %s", root, rec.Existing.MappedDevice)
}

// Growth implements Mode.
func (existing) Growth(c config.Config) pool.Growth { return growth(c) }

// ExtendGrace implements Mode: thinsnap does not extend a foreign pool.
func (existing) ExtendGrace() time.Duration { return 0 }

func existingSpec(rec metadata.PoolRecord) pool.ExistingSpec {
	return pool.ExistingSpec{
		ID:         rec.ID,
		Name:       rec.Name,
		Device:     rec.Existing.MappedDevice,
		UUID:       rec.Existing.UUID,
		BlockBytes: rec.BlockSize,
	}
}
