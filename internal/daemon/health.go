package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
)

// Repaired is what a repair has done to a pool.
type Repaired struct {
	repair.Outcome
	// Losses name what has lost something, by what it belongs to.
	Losses []string
}

// CheckPool checks the metadata of the pool of a root whose daemon is not running, for which it takes the pool out of the
// kernel. The next start brings it back. It is errdefs.ErrUnavailable while the pool is in use, and
// errdefs.ErrNotImplemented for a foreign pool.
func CheckPool(ctx context.Context, c config.Config) (report repair.Report, err error) {
	err = withPool(ctx, c, func(_ *Daemon, stored provision.Stored) error {
		report, err = stored.CheckMetadata(ctx)
		return err
	})
	return report, err
}

// RepairPool repairs that metadata, if it needs it or if it is smaller than so many bytes. Before, it calls show with what
// it will do as lines of shell; and it does nothing more if that says so. It is repair.ErrNothingToDo for metadata that is
// well, and errdefs.ErrNotImplemented for a pool on LVM's volumes, or a foreign pool.
func RepairPool(ctx context.Context, c config.Config, bytes uint64, show func(repair.Report, []string) (more bool, err error)) (r Repaired, err error) {
	// The kernel does not use more, nor a part of a block.
	bytes = min(bytes, pool.MaxMetadataBytes) / pool.MetadataBlockBytes * pool.MetadataBlockBytes
	err = withPool(ctx, c, func(d *Daemon, stored provision.Stored) error {
		m, err := stored.RepairableMetadata(ctx)
		if err != nil {
			return err
		}
		plan, err := m.Plan(ctx, bytes)
		if err != nil {
			return err
		}
		if more, err := show(plan.Report, plan.Lines()); err != nil || !more {
			return err
		}
		if r.Outcome, err = plan.Do(ctx); err != nil {
			return err
		}
		for _, loss := range r.Outcome.Losses {
			owner, err := ownerOfVolume(ctx, d.store, loss.Volume)
			if err != nil {
				return err
			}
			r.Losses = append(r.Losses, owner+" "+lost(loss))
		}
		return nil
	})
	return r, err
}

// ownerOfVolume says what a volume belongs to in the store.
func ownerOfVolume(ctx context.Context, store *metadata.Store, volume uint32) (string, error) {
	name := fmt.Sprintf("volume %d, which belongs to nothing", volume)
	err := store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(volume)
		if !owned {
			return nil
		}
		switch owner.Kind {
		case metadata.OwnerSnapshot:
			name = fmt.Sprintf("snapshot %q (volume %d)", owner.Key, volume)
		case metadata.OwnerBase:
			name = fmt.Sprintf("base volume %s (volume %d)", owner.Key, volume)
		case metadata.OwnerTrash:
			name = fmt.Sprintf("volume %d, which waits to be deleted", volume)
		}
		return nil
	})
	return name, err
}

func lost(l repair.Loss) string {
	switch {
	case l.Gone:
		return fmt.Sprintf("is gone, with %d blocks", l.Had)
	case l.Has == l.Had:
		return fmt.Sprintf("has older content in some of its %d blocks", l.Had)
	default:
		return fmt.Sprintf("has %d blocks where it had %d", l.Has, l.Had)
	}
}

// UndoRepair puts back what was there before the last repair, and returns its file and that with what was there until
// now. With lose it does so in spite of repair.ErrUsedSince.
func UndoRepair(ctx context.Context, c config.Config, lose bool) (restored, kept string, err error) {
	err = withPool(ctx, c, func(_ *Daemon, stored provision.Stored) error {
		m, err := stored.RepairableMetadata(ctx)
		if err != nil {
			return err
		}
		restored, kept, err = m.Undo(ctx, lose)
		return err
	})
	return restored, kept, err
}

// withPool calls f with the pool of a root whose daemon is not running, and cannot be started meanwhile. The pool is not
// in the kernel then.
func withPool(ctx context.Context, c config.Config, f func(*Daemon, provision.Stored) error) (err error) {
	if _, err := os.Stat(storePath(c)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the root %s has no pool: %w", c.Root, errdefs.ErrNotFound)
	}
	d, err := openRoot(c)
	if errors.Is(err, metadata.ErrLocked) {
		return fmt.Errorf("%w: stop it first, as with `systemctl stop thinsnap`", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.closeRoot()) }()
	stored, err := provision.Read(ctx, d.store)
	if err == nil && !stored.Formed() {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("look for the pool of the root %s: %w", c.Root, err)
	}
	if err := stored.RequireOwn(); err != nil {
		return err
	}
	if err := unshareAll(mountDir(c)); err != nil {
		return err
	}
	if err := stored.TakeOut(ctx, d.control); err != nil {
		return fmt.Errorf("take the pool out of the kernel: %w", err)
	}
	return f(d, stored)
}
