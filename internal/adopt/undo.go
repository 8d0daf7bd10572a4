package adopt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// Undo gives the snapshots of the adoption in a root back to the built-in, whether the adoption is
// complete or not. containerd and thinsnap must be stopped. Of the options it uses only the root;
// the record has the others. It calls report before each step. After each error it can be called
// again.
//
// Errors have one of these classes:
//
//   - errdefs.ErrNotFound: the root has no adoption
//   - errdefs.ErrFailedPrecondition, without a change: snapshots were added; snapshots other than
//     Views were removed; the pool is not provably the recorded one; or another process has a
//     database open
//   - errdefs.ErrUnavailable: a volume is in use
func Undo(ctx context.Context, o plan.Options, report func(step string)) error {
	control, err := devmapper.Open()
	if err != nil {
		return err
	}
	return undo(ctx, o.Config.Root, report, host{control})
}

func undo(ctx context.Context, root string, report func(step string), m machine) (err error) {
	defer func() { err = errors.Join(err, m.close()) }()
	if _, err := Read(root); err != nil {
		return err
	}
	a, err := begin(root, report, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.end()) }()
	report("undo the adoption of " + a.record.Began.Format(time.DateTime))
	if a.metaDB, err = hold(a.record.metaPath()); err != nil {
		return err
	}
	for _, path := range []string{a.record.snapshotsPath(), a.record.poolPath()} {
		if err := requireDatabase(path); err != nil {
			return err
		}
	}
	blocked, err := a.isBlocked()
	if err != nil {
		return err
	}
	if err := a.resume(a.record.Device); err != nil {
		return err
	}
	phase := a.record.Phase
	// Otherwise a killed undo has withdrawn the store and unblocked the built-in, which may have used
	// the pool since.
	if blocked || phase != Back {
		if err := a.withdrawStore(ctx); err != nil {
			return err
		}
	}
	// gofail: var adoptUndoAfterWithdraw struct{}
	if err := a.restoreNames(ctx, phase); err != nil {
		return err
	}
	// gofail: var adoptUndoAfterRestore struct{}
	report("restore the databases of containerd's devmapper")
	if err := a.giveBack(); err != nil {
		return err
	}
	report("remove thinsnap's store")
	if err := removeSynced(rootdir.Store(a.root)); err != nil {
		return err
	}
	// gofail: var adoptUndoAfterStore struct{}
	return a.forget()
}

// withdrawStore writes the journal, and then ends thinsnap's use of the pool. Before step 8 the root
// has no store, and thinsnap cannot have used the pool.
func (a *adoption) withdrawStore(ctx context.Context) (err error) {
	path := rootdir.Store(a.root)
	found, err := exists(path)
	if err != nil {
		return explain("look for", path, err)
	}
	phase := a.record.Phase
	if !found {
		if phase == Adopted {
			return fmt.Errorf("thinsnap's store, %s, is missing, and only the store describes the pool's volumes: "+
				"there is no way back without it: %w", path, errdefs.ErrFailedPrecondition)
		}
		return a.recordUndo()
	}
	store, err := metadata.Open(path, metadata.Options{})
	if errors.Is(err, metadata.ErrLocked) {
		return fmt.Errorf("%w: stop it first, for example with `systemctl stop thinsnap.socket thinsnap`: %w", err,
			errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := a.machine.lock(ctx, store); err != nil {
		return err
	}
	if phase != Back {
		a.report("compare thinsnap's store with the adopted one")
		if err := a.requireUnchanged(ctx, store); err != nil {
			return err
		}
		if err := a.requireKnownNames(ctx); err != nil {
			return err
		}
	}
	// The program that loads the pool at boot may have loaded the old table. thinsnap does not open a
	// pool that does not zero new blocks.
	if err := a.zero(ctx, a.record.Device); err != nil {
		return err
	}
	if err := a.recordUndo(); err != nil {
		return err
	}
	// gofail: var adoptUndoAfterJournal struct{}
	a.report("delete thinsnap's own volumes from the pool")
	// A mount below the root would keep a volume in use.
	if err = filesystem.UnmountAll(rootdir.Mounts(a.root)); err == nil {
		err = a.withdraw(ctx, store)
	}
	if err != nil && phase == Adopted && (errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err)) {
		// Nothing was deleted: thinsnap may start again.
		err = errors.Join(err, removeSynced(a.path(openName)))
	}
	return err
}

// recordUndo records in the journal that the adoption is being undone.
func (a *adoption) recordUndo() error {
	a.record.Phase = Back
	return a.record.put(a.dir, openName)
}

// restoreNames gives the snapshotter its old name in the present database of containerd. It changes
// nothing if an unfinished adoption has not renamed it.
func (a *adoption) restoreNames(ctx context.Context, phase Phase) error {
	r := a.record
	if phase == Forward {
		renamed, err := a.isRenamed(ctx)
		if err != nil {
			return err
		}
		// The collector may have removed all names of adopted snapshots since, and left other
		// names.
		moved, err := metadb.Renamed(ctx, r.metaPath(), r.From, r.Proxy)
		if err != nil || !renamed && !moved {
			return err
		}
	}
	if err := a.metaDB.release(); err != nil {
		return err
	}
	a.report(fmt.Sprintf("rename the snapshotter %s to %s in %s", r.Proxy, r.From, r.metaPath()))
	return metadb.Restore(ctx, r.metaPath(), r.From, r.Proxy)
}

// forget removes the record and the files in ROOT/adopt, except for the backups.
func (a *adoption) forget() error {
	for _, name := range []string{closedName, openName} {
		if err := removeSynced(a.path(name)); err != nil {
			return err
		}
		// gofail: var adoptAfterRemove struct{}
	}
	return removeExcept(a.dir, backupName)
}
