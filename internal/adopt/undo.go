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

// Undo gives the snapshots of the adoption in a root back to the built-in: an adoption that is
// complete, or one that was killed. Containerd and thinsnap must be stopped. Of the options it uses
// the root; the record has the others. It calls report with each step before it takes it.
//
// It is errdefs.ErrNotFound if there is no adoption in the root, and errdefs.ErrFailedPrecondition, and
// has changed nothing, if snapshots were added since, or others than Views removed, if the pool is not
// proved to be the recorded one, or if another process has a database open; errdefs.ErrUnavailable while
// a volume is in use. After each error, it can be called again.
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
	report("go back from the adoption of " + a.record.Began.Format(time.DateTime))
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
	// Otherwise a killed run has done it, and the built-in may have used the pool since.
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
	report("give containerd's devmapper its databases back")
	if err := a.giveBack(); err != nil {
		return err
	}
	report("remove thinsnap's records")
	if err := removeSynced(rootdir.Store(a.root)); err != nil {
		return err
	}
	// gofail: var adoptUndoAfterStore struct{}
	return a.forget()
}

// withdrawStore ends thinsnap's use of the pool, if it could use it: the store is in its place. The
// journal comes first.
func (a *adoption) withdrawStore(ctx context.Context) (err error) {
	path := rootdir.Store(a.root)
	found, err := exists(path)
	if err != nil {
		return explain("look for", path, err)
	}
	phase := a.record.Phase
	if !found {
		if phase == Adopted {
			return fmt.Errorf("thinsnap's store, %s, is gone, and with it the proof of what the pool has: "+
				"there is no way back: %w", path, errdefs.ErrFailedPrecondition)
		}
		return a.turnBack()
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
		a.report("compare thinsnap's records with those that were adopted")
		if err := a.requireUnchanged(ctx, store); err != nil {
			return err
		}
		if err := a.requireKnownNames(ctx); err != nil {
			return err
		}
	}
	// Its owner may have loaded the old table at a boot, and thinsnap opens no such pool.
	if err := a.zero(ctx, a.record.Device); err != nil {
		return err
	}
	if err := a.turnBack(); err != nil {
		return err
	}
	// gofail: var adoptUndoAfterJournal struct{}
	a.report("take thinsnap's own volumes out of the pool")
	// A mount of thinsnap's own keeps a volume in use.
	if err = filesystem.UnmountAll(rootdir.Mounts(a.root)); err == nil {
		err = a.withdraw(ctx, store)
	}
	if err != nil && phase == Adopted && (errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err)) {
		// It has deleted nothing: thinsnap may start again.
		err = errors.Join(err, removeSynced(a.path(openName)))
	}
	return err
}

// turnBack has the journal say that the adoption is being undone.
func (a *adoption) turnBack() error {
	a.record.Phase = Back
	return a.record.put(a.dir, openName)
}

// restoreNames gives the snapshotter its old name in containerd's database as it is now. Of an adoption
// that was killed before it had the new one, that file is not changed.
func (a *adoption) restoreNames(ctx context.Context, phase Phase) error {
	r := a.record
	if phase == Forward {
		renamed, err := a.isRenamed(ctx)
		if err != nil {
			return err
		}
		// The collector may have removed all adopted snapshots since, and left other names.
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

// forget removes the record, and what it is about. The copies of the databases stay.
func (a *adoption) forget() error {
	for _, name := range []string{closedName, openName} {
		if err := removeSynced(a.path(name)); err != nil {
			return err
		}
		// gofail: var adoptAfterRemove struct{}
	}
	return removeOthers(a.dir, backupName)
}
