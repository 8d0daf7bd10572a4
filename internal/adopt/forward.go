package adopt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// forward takes the steps after the journal, without those that a killed run has completed.
func (a *adoption) forward(ctx context.Context) error {
	r := a.record
	// The program that loads the pool at boot may have loaded the old table again.
	if err := a.zero(ctx, r.Device); err != nil {
		return err
	}
	// gofail: var adoptAfterZero struct{}
	a.report("rename " + r.poolPath() + ", so that containerd cannot use it")
	if err := a.block(a.poolDB, r.poolPath()); err != nil {
		return err
	}
	// gofail: var adoptAfterBlockPool struct{}
	a.report("rename " + r.snapshotsPath() + ", so that containerd cannot use it")
	if err := a.block(a.snapshotsDB, r.snapshotsPath()); err != nil {
		return err
	}
	// gofail: var adoptAfterBlockSnapshots struct{}
	if len(r.Idle) > 0 {
		a.report(fmt.Sprintf("deactivate %d mapped devices", len(r.Idle)))
	}
	if err := a.deactivate(r.Idle); err != nil {
		return err
	}
	// gofail: var adoptAfterDeactivate struct{}
	a.report(fmt.Sprintf("rename the snapshotter %s to %s in %s", r.From, r.Proxy, r.metaPath()))
	if err := a.renameSnapshotter(ctx); err != nil {
		return err
	}
	// gofail: var adoptAfterVerify struct{}
	a.report("install thinsnap's store")
	if err := a.place(); err != nil {
		return err
	}
	// gofail: var adoptAfterPlace struct{}
	return a.complete()
}

// block replaces a database of the built-in by a text, unless that was done.
func (a *adoption) block(h *held, path string) error {
	blocked, err := isBlocked(path)
	if err != nil {
		return err
	}
	if blocked { // by a killed run, which may not have synced it
		return explain("block", path, syncDirectory(path))
	}
	return h.block(fmt.Sprintf(`The database is the file with the suffix %s.

On %s thinsnap adopted the snapshots of containerd's devmapper snapshotter. They are now in
    %s
The devmapper snapshotter must not use their pool again, and cannot start. containerd 2.x does not
work while it is configured. Configure the proxy plugin %q instead: "thinsnap adopt devmapper" prints how.

To undo the adoption, stop containerd and thinsnap, and run
    thinsnap adopt devmapper --undo
%s`, savedSuffix, a.record.Began.Format(time.DateOnly), a.root, a.record.Proxy, a.record.mark()))
}

// mark returns the line that identifies the texts of one adoption.
func (r Record) mark() string { return "\nAdoption " + r.ID + "\n" }

// isBlocked returns true if this adoption keeps the built-in from starting. If an adoption in
// another root does, it fails with errdefs.ErrFailedPrecondition. The other adoption may have begun
// before this one blocked the built-in.
func (a *adoption) isBlocked() (bool, error) {
	path := a.record.poolPath()
	text, err := textAt(path)
	if err != nil || text == "" {
		return false, err
	}
	if !strings.HasSuffix(text, a.record.mark()) {
		return false, fmt.Errorf("%s belongs to an adoption in another root, which the file names: use that root, and "+
			"remove %s, which has no effect any more: %w", path, a.dir, errdefs.ErrFailedPrecondition)
	}
	return true, nil
}

// isRenamed returns true if the adopted snapshots have the new snapshotter's name in containerd's
// database on the disk. One transaction renames all of them. Other objects with that name do not
// count: a user may have created them.
func (a *adoption) isRenamed(ctx context.Context) (bool, error) {
	r := a.record
	keys, err := a.builtKeys(ctx)
	if err != nil {
		return false, err
	}
	// A killed process may not have synced its transaction. Renamed syncs it.
	if _, err := metadb.Renamed(ctx, r.metaPath(), r.From, r.Proxy); err != nil {
		return false, err
	}
	isOld, err := hasNames(ctx, r.metaPath(), r.From, keys)
	if err != nil {
		return false, err
	}
	isNew, err := hasNames(ctx, r.metaPath(), r.Proxy, keys)
	if err == nil && isOld && isNew {
		err = fmt.Errorf("%s has adopted snapshots of both %q and %q: restore a backup of it: %w", r.metaPath(), r.From,
			r.Proxy, errdefs.ErrDataLoss)
	}
	return isNew, err
}

// hasNames returns true if a snapshot of a snapshotter in containerd's database has one of the keys.
func hasNames(ctx context.Context, path, snapshotter string, keys map[string]bool) (bool, error) {
	all, err := metadb.Read(ctx, path, snapshotter)
	for _, ns := range all.Namespaces {
		for _, s := range ns.Snapshots {
			if keys[s.Backend] {
				return true, nil
			}
		}
	}
	return false, err
}

// builtKeys returns the keys that the store had when it was built.
func (a *adoption) builtKeys(ctx context.Context) (map[string]bool, error) {
	store, err := metadata.Open(a.path(storeName), metadata.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	keys, err := keysOf(ctx, store)
	return keys, errors.Join(err, store.Close())
}

// renameSnapshotter renames the snapshotter in the present database of containerd. It may differ
// from the planned one, because containerd can have run without the built-in, for other
// snapshotters.
func (a *adoption) renameSnapshotter(ctx context.Context) error {
	r := a.record
	renamed, err := a.isRenamed(ctx)
	if err != nil || renamed {
		return err
	}
	keys, err := a.builtKeys(ctx)
	if err != nil {
		return err
	}
	// bbolt takes its own lock.
	if err := a.metaDB.release(); err != nil {
		return err
	}
	return rename(ctx, r.metaPath(), r.From, r.Proxy, func(names metadb.Names) (metadb.LeaveOut, error) {
		return leaveOut(names, r.LeaveOut, keys)
	})
}

// rename renames a snapshotter in a database, and verifies the result. leave chooses the snapshots
// to leave out.
func rename(ctx context.Context, path, from, to string, leave func(metadb.Names) (metadb.LeaveOut, error)) error {
	stray, err := metadb.Read(ctx, path, to)
	if err != nil {
		return err
	}
	if !stray.Vacant() {
		// A user has created an object with the new name since the adoption began.
		if err := metadb.Restore(ctx, path, from, to); err != nil {
			return err
		}
	}
	names, err := metadb.Read(ctx, path, from)
	if err != nil || names.Empty() {
		return err
	}
	out, err := leave(names)
	if err != nil {
		return err
	}
	if err := metadb.Rename(ctx, path, from, to, out); err != nil {
		return err
	}
	// gofail: var adoptAfterRename struct{}
	return metadb.Verify(ctx, path, names, to, out)
}

// leaveOut returns those snapshots of names that are in left. Each other one must be in keys.
func leaveOut(names metadb.Names, left map[string][]string, keys map[string]bool) (metadb.LeaveOut, error) {
	all := make(metadb.LeaveOut)
	for _, ns := range names.Namespaces {
		isLeft := make(map[string]bool)
		for _, name := range left[ns.Name] {
			isLeft[name] = true
		}
		for _, s := range ns.Snapshots {
			switch {
			case isLeft[s.Key]:
				if all[ns.Name] == nil {
					all[ns.Name] = make(map[string]bool)
				}
				all[ns.Name][s.Key] = true
			case !keys[s.Backend]:
				return nil, fmt.Errorf("containerd has made the snapshot %q in namespace %q since the adoption began: "+
					"undo it with `thinsnap adopt devmapper --undo`, and adopt again: %w", s.Key, ns.Name,
					errdefs.ErrFailedPrecondition)
			}
		}
	}
	return all, nil
}

// place copies the store to the path where thinsnap opens it.
func (a *adoption) place() error {
	built, target := a.path(storeName), rootdir.Store(a.root)
	found, err := exists(target)
	if err != nil {
		return explain("look for", target, err)
	}
	if found {
		same, err := sameContent(built, target)
		if err != nil {
			return err
		}
		if !same {
			return a.requireNoStore()
		}
		return explain("make", target, syncDirectory(target))
	}
	temporary := a.path("placed.db")
	if _, err := copyFile(built, temporary); err != nil {
		return err
	}
	// gofail: var adoptBeforePlace struct{}
	if err := os.Rename(temporary, target); err != nil {
		return explain("make", target, err)
	}
	return explain("make", target, syncDirectory(target))
}

func sameContent(a, b string) (bool, error) {
	first, err := checksum(a)
	if err != nil {
		return false, err
	}
	second, err := checksum(b)
	return first == second, err
}

// complete replaces the journal by the record of a complete adoption.
func (a *adoption) complete() error {
	a.record.Phase, a.record.Ended = Adopted, now()
	if err := a.record.put(a.dir, closedName); err != nil {
		return err
	}
	// gofail: var adoptAfterRecord struct{}
	return removeSynced(a.path(openName))
}
