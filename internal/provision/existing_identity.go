package provision

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Prove verifies, by the file systems of adopted volumes, that the adopted pool is the recorded
// one, and that it has the volumes of all snapshots and kept leftovers. It first deactivates the
// pool's volumes, and then activates some of them, read-only, for a moment. The caller must have
// removed the snapshotter's own mounts (rootdir.Mounts, filesystem.UnmountAll).
//
// It fails with errdefs.ErrFailedPrecondition if the pool is another one or lacks a volume, and
// with errdefs.ErrUnavailable while a volume is in use.
func Prove(ctx context.Context, store *metadata.Store, control *devmapper.Control) error {
	stored, err := readAdopted(ctx, store)
	if err == nil {
		err = stored.TakeOut(ctx, control)
	}
	if err == nil {
		err = snapshotter.Classify(asPrecondition(prove(ctx, store, control, stored.rec)))
	}
	if err != nil {
		return fmt.Errorf("prove that the pool is the adopted one: %w", err)
	}
	return nil
}

func prove(ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord) error {
	p, _, err := existingSpec(rec).Open(ctx, control)
	if err != nil {
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
	if err := of.prove(ctx, p, found); err != nil {
		return err
	}
	missing := slices.DeleteFunc(of.needed, func(id thin.ID) bool { _, exists := found[id]; return exists })
	if len(missing) > 0 {
		return fmt.Errorf("pool %s does not have the volumes %v, which the store has: restore the store that belongs to the "+
			"pool as it is: %w", p.Name(), missing, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// readAdopted returns the pool recorded in a store, which must have adopted volumes.
func readAdopted(ctx context.Context, store *metadata.Store) (Stored, error) {
	stored, err := Read(ctx, store)
	if err == nil && len(stored.rec.Existing.Adopted) == 0 {
		err = fmt.Errorf("pool %s has no adopted volumes: %w", stored.rec.Name, errdefs.ErrFailedPrecondition)
	}
	return stored, err
}

// lowest is the lowest id that the store's volumes can have in the foreign pool.
func lowest(rec metadata.PoolRecord) thin.ID {
	if len(rec.Existing.Adopted) > 0 {
		return 1
	}
	return metadata.FirstInForeign
}

// volumes are the volumes that a store records, or that a crash may have left behind.
type volumes struct {
	// adopted and bases prove that a pool is the recorded one.
	adopted, bases []metadata.Witness
	others         []thin.ID
	// needed are the volumes of snapshots and kept leftovers, adopted ones included.
	needed []thin.ID
}

// all returns the ids. Those that prove the pool's identity come last.
func (v volumes) all() []thin.ID {
	ids := v.others
	for _, w := range slices.Concat(v.bases, v.adopted) {
		ids = append(ids, thin.ID(w.VolumeID))
	}
	return ids
}

var errNotProved = fmt.Errorf("it has neither a base volume nor an adopted one that proves that it is the store's: %w",
	errdefs.ErrFailedPrecondition)

// prove verifies the pool's base volumes and up to snapshotter.MostVerified adopted volumes.
func (v volumes) prove(ctx context.Context, p *pool.Pool, found map[thin.ID]bool) error {
	isGone := func(w metadata.Witness) bool { _, exists := found[thin.ID(w.VolumeID)]; return !exists }
	adopted := slices.DeleteFunc(slices.Clone(v.adopted), isGone)
	bases := slices.DeleteFunc(slices.Clone(v.bases), isGone)
	witnesses := slices.Concat(bases, adopted[:min(len(adopted), snapshotter.MostVerified)])
	if len(witnesses) == 0 {
		return fmt.Errorf("pool %s: %w", p.Name(), errNotProved)
	}
	for _, w := range witnesses {
		if err := snapshotter.VerifyWitness(ctx, p, filesystem.Host{}, w); err != nil {
			return fmt.Errorf("volume %d: %w", w.VolumeID, err)
		}
	}
	return nil
}

func storedVolumes(ctx context.Context, store *metadata.Store) (v volumes, err error) {
	err = store.View(ctx, func(tx *metadata.Tx) (err error) {
		v = volumes{}
		if v.adopted, err = tx.AdoptedWitnesses(); err != nil {
			return err
		}
		bases, err := tx.Bases()
		if err != nil {
			return err
		}
		for _, b := range bases {
			v.bases = append(v.bases, b.Witness())
		}
		trash, err := tx.Trash()
		if err != nil {
			return err
		}
		for _, t := range trash {
			v.others = append(v.others, thin.ID(t.VolumeID))
		}
		kept, err := tx.Kept()
		if err != nil {
			return err
		}
		for _, k := range kept {
			v.needed = append(v.needed, thin.ID(k.VolumeID))
		}
		leases, err := tx.Leases()
		if err != nil {
			return err
		}
		for _, l := range leases {
			for id := l.First; id <= l.Last; id++ {
				if _, owned := tx.Owner(id); !owned {
					v.others = append(v.others, thin.ID(id))
				}
			}
		}
		isAdopted := make(map[uint32]bool)
		for _, w := range v.adopted {
			isAdopted[w.VolumeID] = true
		}
		return tx.ForEach(func(s metadata.Snapshot) error {
			if s.Kind == snapshots.KindView {
				return nil
			}
			v.needed = append(v.needed, thin.ID(s.VolumeID))
			if !isAdopted[s.VolumeID] {
				v.others = append(v.others, thin.ID(s.VolumeID))
			}
			return nil
		})
	})
	return v, err
}
