package metadb

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// Rename gives the snapshotter from the name to, wherever the database names it, in one
// transaction. Nothing else changes, and renaming it back makes the database equal to the one
// before. When Rename returns nil, the file is on the disk. When it fails, the database is as it
// was, unless the disk failed during the commit: Read tells.
//
// It does not look at Names.Problems. The owner and the mode of the file stay.
//
// It fails as Read does, with NotFound if nothing names from, with AlreadyExists if anything names
// to, with FailedPrecondition if a label would be longer than containerd accepts, and with
// ResourceExhausted if the disk is full.
func Rename(ctx context.Context, path, from, to string, leave LeaveOut) error {
	if len(leave) > 0 {
		return fmt.Errorf("leave snapshots out: %w", errdefs.ErrNotImplemented)
	}
	return update(ctx, path, from, to, false)
}

// Restore gives the snapshotter the name from again, which Rename changed to to, in the database as
// it is now. An empty bucket that containerd made for from meanwhile is no obstacle; the higher
// sequence is kept. Otherwise it fails as Rename does.
func Restore(ctx context.Context, path, from, to string) error {
	return update(ctx, path, to, from, true)
}

func update(ctx context.Context, path, from, to string, merge bool) error {
	for _, name := range []string{from, to} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if from == to {
		return fmt.Errorf("the snapshotter is called %q already: %w", to, errdefs.ErrInvalidArgument)
	}
	err := boltfile.Update(path, func(tx *bolt.Tx) error { return rename(ctx, tx, from, to, merge) })
	return explain(fmt.Sprintf("rename the snapshotter %q to %q in", from, to), path, err)
}

// A LeaveOut has the snapshots that keep the name of their snapshotter: namespace → keys.
type LeaveOut map[string]map[string]bool

// change is one thing to change.
type change struct {
	in   *bolt.Bucket
	path []string
	key  []byte
	at   place
}

func rename(ctx context.Context, tx *bolt.Tx, from, to string, merge bool) error {
	taken := func(_ *bolt.Bucket, path []string, e entry) error {
		if merge && e.at == bucketName && path[2] == keySnapshots && len(keys(e.bucket)) == 0 {
			return nil
		}
		return fmt.Errorf("%s names %q already: take another name, or remove it: %w", show(path, string(e.key)), to,
			errdefs.ErrAlreadyExists)
	}
	if _, _, err := walk(ctx, tx, to, taken); err != nil {
		return err
	}
	var changes []change
	collect := func(b *bolt.Bucket, path []string, e entry) error {
		changes = append(changes, change{b, path, bytes.Clone(e.key), e.at})
		return nil
	}
	if _, _, err := walk(ctx, tx, from, collect); err != nil {
		return err
	}
	if len(changes) == 0 {
		return fmt.Errorf("nothing in it names %q: %w", from, errdefs.ErrNotFound)
	}
	// Entries within a bucket were visited before the bucket: its copy has their new names.
	for _, c := range changes {
		if err := c.apply(ctx, from, to); err != nil {
			return fmt.Errorf("%s: %w", show(c.path, string(c.key)), err)
		}
	}
	return ctx.Err()
}

func (c *change) apply(ctx context.Context, from, to string) error {
	switch c.at {
	case bucketName:
		target, err := c.in.CreateBucketIfNotExists([]byte(to))
		if err != nil {
			return err
		}
		last := target.Sequence()
		if err := copyBucket(ctx, target, c.in.Bucket([]byte(from))); err != nil {
			return err
		}
		if last > target.Sequence() {
			if err := target.SetSequence(last); err != nil {
				return err
			}
		}
		return c.in.DeleteBucket([]byte(from))
	case wholeValue:
		return c.in.Put(c.key, []byte(to))
	case partOfALabel:
		before, _, after, _ := splitLabel(c.key)
		key := slices.Concat(before, []byte(to), after)
		value := append([]byte{}, c.in.Get(c.key)...)
		if len(key)+len(value) > maxLabel && len(key) > len(c.key) {
			return fmt.Errorf("the label would have %d bytes with the name %q, and containerd accepts %d: "+
				"take a shorter name: %w", len(key)+len(value), to, maxLabel, errdefs.ErrFailedPrecondition)
		}
		if err := c.in.Put(key, value); err != nil {
			return err
		}
		return c.in.Delete(c.key)
	case nowhere:
	}
	return nil
}

// copyBucket copies the entries and the sequences of a bucket, and of those within it.
func copyBucket(ctx context.Context, to, from *bolt.Bucket) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// A bucket counts its keys from 0 after CreateBucket.
	if err := to.SetSequence(from.Sequence()); err != nil {
		return err
	}
	return from.ForEach(func(key, value []byte) error {
		within := from.Bucket(key)
		if within == nil {
			// bbolt takes a nil value for a bucket as long as the transaction lasts.
			return to.Put(key, append([]byte{}, value...))
		}
		target, err := to.CreateBucket(key)
		if err != nil {
			return err
		}
		return copyBucket(ctx, target, within)
	})
}
