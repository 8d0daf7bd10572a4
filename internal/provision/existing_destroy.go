package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Destroy implements Mode. Leftovers that are kept stay.
func (existing) Destroy(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	return snapshotter.Classify(asPrecondition(deleteVolumes(ctx, store, control, rec, 0)))
}

// Withdraw proves as Prove does that the adopted pool is the recorded one, and deletes the volumes that
// the store has beside the adopted and the kept ones: its volumes with ids from metadata.FirstInForeign
// on. It leaves the store as it is, and can be repeated. If it fails as Prove does, it has deleted
// nothing.
func Withdraw(ctx context.Context, store *metadata.Store, control *devmapper.Control) error {
	if err := Prove(ctx, store, control); err != nil {
		return err
	}
	rec, err := recorded(ctx, store)
	if err == nil {
		err = snapshotter.Classify(asPrecondition(deleteVolumes(ctx, store, control, rec, metadata.FirstInForeign)))
	}
	if err != nil {
		return fmt.Errorf("delete thinsnap's own volumes: %w", err)
	}
	return nil
}

// deleteVolumes deletes the store's volumes with ids from first on from a foreign pool. Those that
// prove that it is the recorded pool go last, so that it can be repeated after a crash.
func deleteVolumes(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord, first thin.ID,
) error {
	p, _, err := existingSpec(rec).Open(ctx, control)
	if err != nil {
		return fmt.Errorf("%w; if the pool is lost, remove the root directory", err)
	}
	if err := p.Close(ctx); err != nil {
		return err
	}
	of, err := storedVolumes(ctx, store)
	if err != nil {
		return err
	}
	found, err := p.Volumes(ctx, lowest(rec), metadata.MaxDevice)
	if err != nil {
		return err
	}
	ids := slices.DeleteFunc(of.all(), func(id thin.ID) bool { _, exists := found[id]; return !exists || id < first })
	if len(ids) == 0 {
		return nil
	}
	if err := of.prove(ctx, p, found); err != nil {
		if errors.Is(err, errNotProved) {
			err = fmt.Errorf("%w: if the volumes with the ids %v are thinsnap's, delete them with `dmsetup message`, and remove "+
				"the root directory", err, ids)
		}
		return err
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
