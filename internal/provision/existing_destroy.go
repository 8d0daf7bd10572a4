package provision

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Destroy implements Mode.
func (existing) Destroy(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	return snapshotter.Classify(asPrecondition(deleteVolumes(ctx, store, control, rec)))
}

// deleteVolumes deletes the store's volumes from a foreign pool. The base volumes, which prove
// that it is the recorded pool, go last, so that it can be repeated after a crash.
func deleteVolumes(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	p, _, err := existingSpec(rec).Open(ctx, control)
	if err != nil {
		return fmt.Errorf("%w; if the pool is lost, remove the root directory", err)
	}
	if err := p.Close(ctx); err != nil {
		return err
	}
	ids, bases, err := storedVolumes(ctx, store)
	if err != nil {
		return err
	}
	found, err := p.Volumes(ctx, metadata.FirstInForeign, metadata.MaxDevice)
	if err != nil {
		return err
	}
	isGone := func(id thin.ID) bool { _, exists := found[id]; return !exists }
	ids = slices.DeleteFunc(ids, isGone)
	bases = slices.DeleteFunc(bases, func(b metadata.BaseRecord) bool { return isGone(thin.ID(b.VolumeID)) })
	if len(bases) == 0 && len(ids) > 0 {
		return fmt.Errorf("pool %s has volumes with the ids %v, but no base volume that proves that they are the store's: "+
			"if they are thinsnap's, delete them with `dmsetup message`, and remove the root directory: %w",
			p.Name(), ids, errdefs.ErrFailedPrecondition)
	}
	for _, b := range bases {
		if err := snapshotter.VerifyBase(ctx, p, filesystem.Host{}, b); err != nil {
			return fmt.Errorf("base volume %d: %w", b.VolumeID, err)
		}
	}
	for _, b := range bases {
		ids = append(ids, thin.ID(b.VolumeID))
	}
	for _, id := range ids {
		if whole := found[id]; !whole {
			log.G(ctx).WithField("id", id).Warn("a volume without a tree of mappings is left in the pool: " +
				"deleting it could damage the pool")
			continue
		}
		if err := p.Delete(ctx, id); err != nil {
			return fmt.Errorf("delete volume %d: %w", id, err)
		}
	}
	return nil
}

// storedVolumes returns the ids of the volumes that the store records, or that a crash may have
// left, and the base volumes separately.
func storedVolumes(ctx context.Context, store *metadata.Store) (ids []thin.ID, bases []metadata.BaseRecord, err error) {
	err = store.View(ctx, func(tx *metadata.Tx) (err error) {
		if bases, err = tx.Bases(); err != nil {
			return err
		}
		trash, err := tx.Trash()
		if err != nil {
			return err
		}
		for _, t := range trash {
			ids = append(ids, thin.ID(t.VolumeID))
		}
		leases, err := tx.Leases()
		if err != nil {
			return err
		}
		for _, l := range leases {
			for id := l.First; id <= l.Last; id++ {
				if _, owned := tx.Owner(id); !owned {
					ids = append(ids, thin.ID(id))
				}
			}
		}
		return tx.ForEach(func(s metadata.Snapshot) error {
			if s.Kind != snapshots.KindView {
				ids = append(ids, thin.ID(s.VolumeID))
			}
			return nil
		})
	})
	return ids, bases, err
}
