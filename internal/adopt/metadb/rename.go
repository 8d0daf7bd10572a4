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

// Rename gives the snapshotter from the name to, wherever the database names it, in one
// transaction. The snapshots to leave out keep the old name, and so do labels and leases of them.
// Names of to that are Vacant are no obstacle: the higher sequence of two buckets is kept.
//
// It does not look at Names.Problems. The file stays the same one, with its owner, its mode and its
// attributes. When Rename returns nil, the file is on the disk. When it fails, nothing has changed,
// unless the commit failed; the error says so then, and Renamed tells.
//
// It fails as Read does, with NotFound if nothing names from, with AlreadyExists if the names of to
// are not Vacant, with InvalidArgument if a snapshot that is left out has a child that is not, with
// FailedPrecondition if a label would be longer than containerd accepts, and with ResourceExhausted
// if the disk is full.
func Rename(ctx context.Context, path, from, to string, leave LeaveOut) error {
	m := mover{from: from, to: to, leave: leave}
	return update(ctx, path, fmt.Sprintf("rename the snapshotter %q to %q in", from, to), from, to, m.rename)
}

// Restore gives the snapshotter the name from that it had before Rename, in the database as it is
// now, and puts it together with what was left out. The higher sequence of two buckets is kept. It
// does nothing if nothing names to.
//
// If nothing else has changed the database since Rename, it is equal to the one before, with two
// exceptions: what Rename found of to is gone, and has left its sequence; and an empty bucket of
// labels, which containerd does not make, is gone from what was left out.
//
// It fails as Rename does: with AlreadyExists if a snapshot has both names, or if an object has a
// label for both with different values.
func Restore(ctx context.Context, path, from, to string) error {
	m := mover{from: to, to: from}
	return update(ctx, path, fmt.Sprintf("rename the snapshotter %q back to %q in", to, from), from, to, m.restore)
}

// Renamed tells whether Rename was committed, in a database in which the names of to were Vacant
// before. What it tells is on the disk. If Rename left out everything, it may say no: Rename can be
// called again then. It fails as Read does, and with Unavailable if the file cannot be synced.
func Renamed(ctx context.Context, path, from, to string) (bool, error) {
	if err := checkNames(from, to); err != nil {
		return false, err
	}
	if err := toDisk(path); err != nil {
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
		err = toDisk(path) // of a call before that was killed
	case err != nil && committing:
		err = fmt.Errorf("the commit failed, and may have changed the database or not: %w", err)
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

// toDisk has the file on the disk, and the next read come from there: after a sync that failed, the
// kernel takes its cache for what is on the disk.
func toDisk(path string) (err error) {
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
