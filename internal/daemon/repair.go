package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// Repaired is the result of a repair of a pool.
type Repaired struct {
	repair.Outcome
	// Losses describe the owners of volumes with lost data.
	Losses []string
}

// CheckPool checks the metadata of a root's pool. It removes the pool from the kernel; the daemon's
// next start loads it again. No daemon may be running on the root. It fails with
// errdefs.ErrUnavailable while the pool is in use, and with errdefs.ErrNotImplemented for a foreign
// pool.
func CheckPool(ctx context.Context, c config.Config) (report repair.Report, err error) {
	err = withPool(ctx, c, func(_ *Daemon, stored provision.Stored) error {
		report, err = stored.CheckMetadata(ctx)
		return err
	})
	return report, err
}

// RepairPool repairs the metadata of a root's pool if it is damaged, marked needs_check, or smaller
// than the given size in bytes. It first calls show with the plan as shell commands, and stops if
// show returns false. It fails with repair.ErrNothingToDo for intact metadata, and with
// errdefs.ErrNotImplemented for an LVM or a foreign pool.
func RepairPool(
	ctx context.Context, c config.Config, bytes uint64, show func(repair.Report, []string) (more bool, err error),
) (r Repaired, err error) {
	// The kernel uses at most MaxMetadataBytes, in whole blocks.
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
			r.Losses = append(r.Losses, owner+": "+lost(loss))
		}
		return nil
	})
	return r, err
}

// ownerOfVolume describes a volume's owner in the store.
func ownerOfVolume(ctx context.Context, store *metadata.Store, volume uint32) (string, error) {
	name := fmt.Sprintf("volume %d, which has no owner", volume)
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
			name = fmt.Sprintf("volume %d, which waits for deletion", volume)
		case metadata.OwnerKept:
			name = fmt.Sprintf("volume %d, a leftover that is kept", volume)
		}
		return nil
	})
	return name, err
}

func lost(l repair.Loss) string {
	switch {
	case l.Gone:
		return fmt.Sprintf("all of its %d blocks", l.Had)
	case l.Has == l.Had:
		return fmt.Sprintf("old data in some of its %d blocks", l.Had)
	default:
		return fmt.Sprintf("only %d of its %d blocks are left", l.Has, l.Had)
	}
}

// UndoRepair restores the metadata from before the last repair. It returns the path of the restored
// file, and of the file that keeps the replaced metadata. With lose it ignores repair.ErrUsedSince.
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

// withPool removes a root's pool from the kernel and calls f with it. The root is locked meanwhile.
func withPool(ctx context.Context, c config.Config, f func(*Daemon, provision.Stored) error) (err error) {
	if _, err := os.Stat(rootdir.Store(c.Root)); errors.Is(err, os.ErrNotExist) {
		return noData(c)
	}
	d, err := openRoot(c)
	if errors.Is(err, metadata.ErrLocked) {
		return fmt.Errorf("%w: stop it first, for example with `systemctl stop thinsnap.socket thinsnap`", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.closeRoot()) }()
	stored, err := provision.Read(ctx, d.store)
	if err == nil && !stored.Complete() {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("read the pool of the root %s: %w", c.Root, err)
	}
	if err := stored.RequireOwn(); err != nil {
		return err
	}
	if err := filesystem.UnmountAll(rootdir.Mounts(c.Root)); err != nil {
		return err
	}
	if err := stored.TakeOut(ctx, d.control); err != nil {
		return fmt.Errorf("remove the pool from the kernel: %w", err)
	}
	return f(d, stored)
}
