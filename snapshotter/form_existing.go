package snapshotter

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// ExistingConfig describes the pool that somebody else made and that a store is to use.
type ExistingConfig struct {
	// Name is what the names of the volumes' devices begin with.
	Name string
	// Device is what the pool is called; see pool.DeviceName.
	Device string
}

// OpenExistingPool takes over a pool that somebody else made. The first time, nobody may
// have a volume there with an id that could become one of ours; nothing of the pool is
// changed.
//
// It is errdefs.ErrFailedPrecondition if the pool is not there, cannot be the one that
// the store belongs to, or has such a volume, or if the configuration describes another.
func OpenExistingPool(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, config ExistingConfig,
) (*pool.Pool, error) {
	rec, err := poolRecord(ctx, store)
	if err == nil {
		if err := sameExistingPool(rec, config); err != nil {
			return nil, err
		}
		p, _, err := pool.OpenExisting(ctx, control, existingSpec(rec))
		return p, refused(err)
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	p, rec, err := adopt(ctx, control, config)
	if err != nil {
		return nil, err
	}
	log.G(ctx).WithField("pool", p.Name()).WithField("uuid", p.UUID()).Info("taking over a pool that is there")
	return p, store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) })
}

// adopt looks whether a pool can be taken over, and returns the record of it.
func adopt(ctx context.Context, control *devmapper.Control, config ExistingConfig) (*pool.Pool, metadata.PoolRecord, error) {
	rec := metadata.PoolRecord{
		ID: rand.Text(), Mode: metadata.ModeExisting, Name: config.Name, Created: now(), Formed: true,
		Existing: metadata.ExistingPool{Device: pool.DeviceName(config.Device)},
	}
	spec := existingSpec(rec)
	spec.Device = config.Device
	p, found, err := pool.OpenExisting(ctx, control, spec)
	if err != nil {
		return nil, rec, refused(err)
	}
	if err := requireUntaken(ctx, p, metadata.FirstInExisting, metadata.MaxDevice); err != nil {
		return nil, rec, err
	}
	rec.BlockSize, rec.Existing.UUID = found.BlockBytes, found.UUID
	return p, rec, nil
}

// requireUntaken sees that a pool that somebody else made has no volume with these ids.
func requireUntaken(ctx context.Context, p Pool, first, last thin.ID) error {
	taken, err := p.Volumes(ctx, first, last)
	if err != nil || len(taken) == 0 {
		return err
	}
	return fmt.Errorf("the pool has %d volumes that are not ours with ids from %d on, which thinsnap needs for its own (the first is %d); "+
		"nothing was changed: use another pool, or, if nobody needs them (do they belong to another thinsnap?), have them deleted: %w",
		len(taken), metadata.FirstInExisting, slices.Min(slices.Collect(maps.Keys(taken))), errdefs.ErrFailedPrecondition)
}

// PlanExistingPool returns what OpenExistingPool would do the first time, as lines of
// shell, and its refusals. It changes nothing, but for a pool of LVM's that is not in the
// kernel, which LVM is told to activate. A store that is nil is one that knows of no pool.
func PlanExistingPool(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, config ExistingConfig,
) ([]string, error) {
	if store != nil {
		rec, err := poolRecord(ctx, store)
		if err == nil {
			return nil, sameExistingPool(rec, config)
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	p, rec, err := adopt(ctx, control, config)
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("# %s, with UUID %q and blocks of %d bytes, is taken over as it is",
		devmapper.NodePath(p.Name()), p.UUID(), rec.BlockSize)}, nil
}

// sameExistingPool refuses a configuration that describes another pool than the one that
// was taken over.
func sameExistingPool(rec metadata.PoolRecord, config ExistingConfig) error {
	switch device := pool.DeviceName(config.Device); {
	case rec.Mode != metadata.ModeExisting:
		return differs("pool.mode", rec.Mode, metadata.ModeExisting)
	case rec.Name != config.Name:
		return differs("pool.name", rec.Name, config.Name)
	case rec.Existing.Device != device:
		return differs("pool.existing.device", rec.Existing.Device, device)
	}
	return nil
}

func existingSpec(rec metadata.PoolRecord) pool.ExistingSpec {
	return pool.ExistingSpec{
		ID:         rec.ID,
		Name:       rec.Name,
		Device:     rec.Existing.Device,
		UUID:       rec.Existing.UUID,
		BlockBytes: rec.BlockSize,
	}
}
