package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// emptyExisting deletes the store's volumes from a pool that somebody else made. The base
// volumes, by which the pool is told, go last, so that it can be repeated after a crash.
func emptyExisting(ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord) error {
	p, _, err := pool.OpenExisting(ctx, control, existingSpec(rec))
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
	there, err := p.Volumes(ctx, metadata.FirstInExisting, metadata.MaxDevice)
	if err != nil {
		return err
	}
	isGone := func(id thin.ID) bool { _, found := there[id]; return !found }
	ids = slices.DeleteFunc(ids, isGone)
	bases = slices.DeleteFunc(bases, func(b metadata.BaseRecord) bool { return isGone(thin.ID(b.Device)) })
	if len(bases) == 0 && len(ids) > 0 {
		return fmt.Errorf("there is no base volume in pool %s that would show that it is the store's, but volumes with the ids %v: "+
			"if they are thinsnap's, delete them with `dmsetup message`, and remove the root directory: %w",
			p.Name(), ids, errdefs.ErrFailedPrecondition)
	}
	for _, b := range bases {
		if err := isBase(ctx, p, b); err != nil {
			return fmt.Errorf("base volume %d: %w", b.Device, err)
		}
	}
	for _, b := range bases {
		ids = append(ids, thin.ID(b.Device))
	}
	for _, id := range ids {
		if !there[id] {
			log.G(ctx).WithField("id", id).Warn("a volume that the kernel has lost the mappings of is left in the pool: to delete it could damage that")
			continue
		}
		if err := p.Delete(ctx, id); err != nil {
			return fmt.Errorf("delete volume %d: %w", id, err)
		}
	}
	return nil
}

// storedVolumes returns the ids that the store has volumes of, or may have left volumes
// of, and apart from them the base volumes.
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
			ids = append(ids, thin.ID(t.Device))
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
				ids = append(ids, thin.ID(s.Device))
			}
			return nil
		})
	})
	return ids, bases, err
}

// isBase sees that a volume has the file system of a base volume.
func isBase(ctx context.Context, p *pool.Pool, b metadata.BaseRecord) (err error) {
	vol, err := p.Activate(ctx, thin.ID(b.Device), b.Size, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, newVolumes(p).deactivateSoon(ctx, vol.ID)) }()
	sb, err := HostFilesystem{}.Identify(vol.Path)
	if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
		return err
	}
	if sb.UUID != b.UUID {
		return fmt.Errorf("has a file system with UUID %q, and should have %q: %w", sb.UUID, b.UUID, pool.ErrWrongPool)
	}
	return nil
}
