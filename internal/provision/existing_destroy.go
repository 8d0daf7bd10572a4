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

// Destroy implements Mode. Kept leftovers stay.
func (existing) Destroy(
	ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	return snapshotter.Classify(asPrecondition(deleteVolumes(ctx, store, control, rec, 0)))
}

// Withdraw verifies the adopted pool as Prove does, and deletes the store's volumes with ids from
// metadata.FirstInForeign on. Adopted and kept volumes stay, and the store is unchanged. Withdraw
// can be repeated. If the verification fails, it has deleted nothing.
func Withdraw(ctx context.Context, store *metadata.Store, control *devmapper.Control) error {
	if err := Prove(ctx, store, control); err != nil {
		return err
	}
	rec, err := readRecord(ctx, store)
	if err == nil {
		err = snapshotter.Classify(asPrecondition(deleteVolumes(ctx, store, control, rec, metadata.FirstInForeign)))
	}
	if err != nil {
		return fmt.Errorf("delete thinsnap's own volumes: %w", err)
	}
	return nil
}

// deleteVolumes deletes the store's volumes with ids from first on from a foreign pool. The volumes
// that prove the pool's identity go last, so that it can be repeated after a crash.
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
			log.G(ctx).WithField("id", id).Warn("a volume without a mapping tree stays in the pool: " +
				"deleting it could damage the pool")
			continue
		}
		if err := p.Delete(ctx, id); err != nil {
			return fmt.Errorf("delete volume %d: %w", id, err)
		}
	}
	return nil
}
