package metadb

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// Rename replaces a snapshotter's old name (from) by the new one (to), wherever the database has it,
// in one transaction. The snapshots in leave keep the old name, and so do labels and leases of them.
// If the Names of the new name are Vacant, Rename merges them: it keeps the higher sequence of two
// buckets. It ignores Names.Problems.
//
// The file remains the same, with its owner, mode and attributes, and is on the disk when Rename
// returns nil. An error means that nothing has changed, except for an error of the commit, which
// says that its outcome is unknown. Then Renamed returns the outcome. Errors have the classes of
// Read and:
//
//   - NotFound: the database does not have the old name
//   - AlreadyExists: the Names of the new name are not Vacant, or an object has one of the labels
//     for snapshots that are left out
//   - InvalidArgument: a snapshot that is left out has a child that is not
//   - FailedPrecondition: a label would be longer than containerd accepts, or the file system is
//     read-only
//   - ResourceExhausted: the disk is full
func Rename(ctx context.Context, path, from, to string, leave LeaveOut) error {
	m := mover{from: from, to: to, leave: leave}
	return update(ctx, path, fmt.Sprintf("rename the snapshotter %q to %q in", from, to), from, to, m.rename)
}

// Restore undoes a Rename with the same names, in the present database: it replaces the new name
// (to) by the old one (from), and merges the snapshots that were left out. It keeps the higher
// sequence of two buckets. It does nothing if the database does not have the new name.
//
// If nothing else has changed the database since Rename, Restore makes it equal to the original,
// with two exceptions. Entries that had the new name before Rename are gone, except for their
// sequence. An empty bucket of labels, which containerd does not make, is gone from snapshots that
// were left out.
//
// It fails like Rename, and with AlreadyExists also if a snapshot has both names, or if an object
// has labels for both with different values.
func Restore(ctx context.Context, path, from, to string) error {
	m := mover{from: to, to: from}
	return update(ctx, path, fmt.Sprintf("rename the snapshotter %q back to %q in", to, from), from, to, m.restore)
}

// Renamed returns true if a Rename with the same names was committed. Before it, the Names of the
// new name must have been Vacant. Renamed syncs the file first. If Rename left out everything, it
// may return false; Rename can then be called again. It fails like Read, and with Unavailable if the
// file cannot be synced.
func Renamed(ctx context.Context, path, from, to string) (bool, error) {
	if err := checkNames(from, to); err != nil {
		return false, err
	}
	if err := syncFile(path); err != nil {
		return false, explain("sync", path, err)
	}
	left, moved := false, false
	err := boltfile.View(path, func(tx *bolt.Tx) error {
		_, _, err := walk(ctx, tx, func(_ *bolt.Bucket, _ []string, e entry) error {
			left = left || e.name == from
			moved = moved || e.name == to && !e.idle()
			return nil
		}, from, to)
		return err
	})
	return err == nil && (moved || !left), explain("read", path, err)
}

// update changes the database with fn.
func update(ctx context.Context, path, do, from, to string, fn func(context.Context, *bolt.Tx) error) error {
	if err := checkNames(from, to); err != nil {
		return err
	}
	committing := false
	err := boltfile.Update(path, func(tx *bolt.Tx) error {
		err := fn(ctx, tx)
		if err == nil {
			err = ctx.Err()
		}
		committing = err == nil
		return err
	})
	switch {
	case errors.Is(err, errNothing):
		err = syncFile(path) // an earlier call may have been killed before its sync
	case err != nil && committing:
		err = fmt.Errorf("the commit failed, and may or may not have changed the database: %w", err)
	}
	return explain(do, path, err)
}

func checkNames(from, to string) error {
	for _, name := range []string{from, to} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if from == to {
		return fmt.Errorf("the snapshotter is called %q already: %w", to, errdefs.ErrInvalidArgument)
	}
	return nil
}

// syncFile syncs the file and drops its pages from the kernel's cache. After a failed sync, the cache
// has pages that are not on the disk but count as clean.
func syncFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
