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

// forward takes the steps after the journal. Those that a killed run took are not taken again.
func (a *adoption) forward(ctx context.Context) error {
	r := a.record
	// The owner may have loaded the old table since.
	if err := a.zero(ctx, r.Device); err != nil {
		return err
	}
	// gofail: var adoptAfterZero struct{}
	a.report("put " + r.poolPath() + " out of containerd's reach")
	if err := a.block(a.poolDB, r.poolPath()); err != nil {
		return err
	}
	// gofail: var adoptAfterBlockPool struct{}
	a.report("put " + r.snapshotsPath() + " out of containerd's reach")
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
	a.report("put thinsnap's records in their place")
	if err := a.place(); err != nil {
		return err
	}
	// gofail: var adoptAfterPlace struct{}
	return a.complete()
}

// block puts a text in the place of a database of the built-in, unless it is there.
func (a *adoption) block(h *held, path string) error {
	blocked, err := isBlocked(path)
	if err != nil {
		return err
	}
	if blocked { // by a killed run, which may not have come to this
		return explain("block", path, syncDirectory(path))
	}
	return h.block(fmt.Sprintf(`It is the file with the suffix %s.

On %s thinsnap adopted the snapshots of containerd's devmapper snapshotter. They are in
    %s
now. Devmapper must not use their pool any more, and cannot start; nor does containerd 2.x work with
it. Have containerd use the proxy plugin %q in its place: "thinsnap adopt devmapper" prints how.

To go back, stop containerd and thinsnap, and run
    thinsnap adopt devmapper --undo
%s`, savedSuffix, a.record.Began.Format(time.DateOnly), a.root, a.record.Proxy, a.record.mark()))
}

// mark is the line by which the texts in the place of databases belong to one adoption.
func (r Record) mark() string { return "\nAdoption " + r.ID + "\n" }

// isBlocked reports whether the built-in cannot start, because of this adoption. A second one, in another
// root, may have begun while this one was not under way: then it is errdefs.ErrFailedPrecondition.
func (a *adoption) isBlocked() (bool, error) {
	path := a.record.poolPath()
	text, err := textAt(path)
	if err != nil || text == "" {
		return false, err
	}
	if !strings.HasSuffix(text, a.record.mark()) {
		return false, fmt.Errorf("%s belongs to an adoption in another root, which it names: go on with that one, and "+
			"remove %s, of which nothing is left: %w", path, a.dir, errdefs.ErrFailedPrecondition)
	}
	return true, nil
}

// isRenamed reports whether the adopted snapshots have the new snapshotter's name in containerd's
// database, on the disk. One transaction renames all of them. It is not asked what else has that name:
// a user may have given it to an object.
func (a *adoption) isRenamed(ctx context.Context) (bool, error) {
	r := a.record
	keys, err := a.builtKeys(ctx)
	if err != nil {
		return false, err
	}
	// A killed process has not synced its transaction.
	if _, err := metadb.Renamed(ctx, r.metaPath(), r.From, r.Proxy); err != nil {
		return false, err
	}
	isOld, err := names(ctx, r.metaPath(), r.From, keys)
	if err != nil {
		return false, err
	}
	isNew, err := names(ctx, r.metaPath(), r.Proxy, keys)
	if err == nil && isOld && isNew {
		err = fmt.Errorf("%s has adopted snapshots of both %q and %q: restore a backup of it: %w", r.metaPath(), r.From,
			r.Proxy, errdefs.ErrDataLoss)
	}
	return isNew, err
}

// names reports whether containerd's database names a snapshot with one of the keys for a snapshotter.
func names(ctx context.Context, path, snapshotter string, keys map[string]bool) (bool, error) {
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

// builtKeys returns the keys of the store as it was built.
func (a *adoption) builtKeys(ctx context.Context) (map[string]bool, error) {
	store, err := metadata.Open(a.path(storeName), metadata.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	keys, err := keysOf(ctx, store)
	return keys, errors.Join(err, store.Close())
}

// renameSnapshotter renames the snapshotter in containerd's database as it is now. It may have changed
// since the plan was made: containerd can have run without the built-in, for other snapshotters.
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
	// bbolt locks the file for itself.
	if err := a.metaDB.release(); err != nil {
		return err
	}
	return rename(ctx, r.metaPath(), r.From, r.Proxy, func(names metadb.Names) (metadb.LeaveOut, error) {
		return leaveOut(names, r.LeaveOut, keys)
	})
}

// rename renames a snapshotter in a database, and verifies the result. leave chooses what is left out.
func rename(ctx context.Context, path, from, to string, leave func(metadb.Names) (metadb.LeaveOut, error)) error {
	stray, err := metadb.Read(ctx, path, to)
	if err != nil {
		return err
	}
	if !stray.Vacant() {
		// A user has given the new name to an object since the adoption was begun.
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

// leaveOut returns the snapshots of names that are left out. Any other must be one of the keys.
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
				return nil, fmt.Errorf("containerd has the snapshot %q in namespace %q since the adoption was begun: "+
					"go back with `thinsnap adopt devmapper --undo`, and adopt again: %w", s.Key, ns.Name,
					errdefs.ErrFailedPrecondition)
			}
		}
	}
	return all, nil
}

// place puts a copy of the store where thinsnap looks for it.
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

// complete closes the journal.
func (a *adoption) complete() error {
	a.record.Phase, a.record.Ended = Adopted, now()
	if err := a.record.put(a.dir, closedName); err != nil {
		return err
	}
	// gofail: var adoptAfterRecord struct{}
	return removeSynced(a.path(openName))
}
