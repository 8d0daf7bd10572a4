package metadb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A mover gives entries that name the snapshotter from the name to.
type mover struct {
	from, to string
	leave    LeaveOut
	back     bool // to the name before: entries with the name to are merged with
	changes  []change
	parted   []parted // snapshots that find their parent again
}

// change is one entry to change.
type change struct {
	in   *bolt.Bucket
	path []string
	key  []byte
	at   place
	keep string // of a container: the key of its snapshot, which is left out
}

// parted is a snapshot that was left out.
type parted struct{ namespace, key string }

// errNothing is returned if there is nothing to restore.
var errNothing = errors.New("nothing to restore")

func (m *mover) rename(ctx context.Context, tx *bolt.Tx) error {
	found := false
	_, _, err := walk(ctx, tx, func(b *bolt.Bucket, path []string, e entry) error {
		if e.name == m.from {
			found = true
			return m.collect(b, path, e)
		}
		if e.idle() {
			return nil
		}
		return fmt.Errorf("%s names %q already: take another name, or remove it: %w", show(path, string(e.key)), m.to,
			errdefs.ErrAlreadyExists)
	}, m.from, m.to)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("nothing in it names %q: %w", m.from, errdefs.ErrNotFound)
	}
	return m.apply(ctx)
}

func (m *mover) restore(ctx context.Context, tx *bolt.Tx) error {
	m.back = true
	_, _, err := walk(ctx, tx, func(b *bolt.Bucket, path []string, e entry) error {
		if e.name == m.to {
			return nil
		}
		return m.collect(b, path, e)
	}, m.from, m.to)
	switch {
	case err != nil:
		return err
	case len(m.changes) == 0:
		return errNothing
	}
	if err := m.apply(ctx); err != nil {
		return err
	}
	for _, p := range m.parted {
		if err := m.rejoin(tx, p); err != nil {
			return err
		}
	}
	return nil
}

// collect takes an entry that names the snapshotter, unless it is a label for what is left out.
func (m *mover) collect(b *bolt.Bucket, path []string, e entry) error {
	c, out := change{in: b, path: path, key: bytes.Clone(e.key), at: e.at}, m.leave[namespaceOf(path)]
	switch {
	case e.at == bucketName && path[2] == keySnapshots:
		if err := m.leave.closed(path[1], e.bucket); err != nil {
			return err
		}
	case e.at == partOfALabel && out[referent(e.key, e.value)]:
		return nil
	case e.at == wholeValue && path[2] == keyContainers:
		if key := string(b.Get([]byte(keySnapshotKey))); out[key] {
			c.keep = key
		}
	}
	m.changes = append(m.changes, c)
	return nil
}

func (m *mover) apply(ctx context.Context) error {
	// Entries within a bucket were visited before the bucket: its copy has their new names.
	for _, c := range m.changes {
		var err error
		switch c.at {
		case bucketName:
			err = m.bucket(ctx, c)
		case wholeValue:
			err = errors.Join(m.container(c), c.in.Put(c.key, []byte(m.to)))
		case partOfALabel:
			err = m.label(c)
		case nowhere:
		}
		if err != nil {
			return fmt.Errorf("%s: %w", show(c.path, string(c.key)), err)
		}
	}
	return nil
}

// container has a container keep its snapshot, which is left out, or restores one that does.
func (m *mover) container(c change) error {
	switch {
	case c.keep != "":
		return keep(c.in, labelRef+m.from+containerSuffix, c.keep)
	case m.back && c.path[2] == keyContainers:
		_, err := keepNoLonger(c.in, labelRef+m.to+containerSuffix)
		return err
	}
	return nil
}

// label renames a label.
func (m *mover) label(c change) error {
	before, _, after, _ := splitLabel(c.key)
	key := slices.Concat(before, []byte(m.to), after)
	value := append([]byte{}, c.in.Get(c.key)...)
	ofLeftOut := snapshotRecord(c.path[:len(c.path)-1]) && c.path[3] == m.to
	if m.back && ofLeftOut && string(c.key) == labelRef+m.from+parentSuffix {
		m.parted = append(m.parted, parted{c.path[1], c.path[4]})
		return nil
	}
	switch taken := c.in.Get(key); {
	case taken != nil && !bytes.Equal(taken, value):
		return fmt.Errorf("its value %q is not that of the same label for %q, %q: remove one of them: %w", value, m.to, taken,
			errdefs.ErrAlreadyExists)
	case !m.back && len(key)+len(value) > maxLabel && len(key) > len(c.key):
		return fmt.Errorf("the label would have %d bytes with the name %q, and containerd accepts %d: "+
			"take a shorter name: %w", len(key)+len(value), m.to, maxLabel, errdefs.ErrFailedPrecondition)
	}
	if err := c.in.Put(key, value); err != nil {
		return err
	}
	return c.in.Delete(c.key)
}

// bucket moves the snapshots of a namespace or of a lease.
func (m *mover) bucket(ctx context.Context, c change) error {
	source, out := c.in.Bucket([]byte(m.from)), m.leave[c.path[1]]
	ofLease := c.path[2] == keyLeases
	var move, stay [][]byte
	err := source.ForEach(func(key, value []byte) error {
		if out[string(key)] && ofLease == (value != nil) {
			stay = append(stay, bytes.Clone(key))
		} else {
			move = append(move, bytes.Clone(key))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if ofLease && len(move) == 0 && len(stay) > 0 {
		return nil
	}
	target, err := c.in.CreateBucketIfNotExists([]byte(m.to))
	if err != nil {
		return err
	}
	// A bucket counts from 0 after CreateBucket, and a number must not be used again.
	if err := target.SetSequence(max(source.Sequence(), target.Sequence())); err != nil {
		return err
	}
	for _, key := range move {
		if target.Bucket(key) != nil || target.Get(key) != nil {
			if ofLease {
				continue
			}
			return fmt.Errorf("%q has a snapshot %q in namespace %q, too: remove that of %q "+
				"(ctr -n %[3]s snapshots --snapshotter %[4]s rm %[2]s): %[5]w", m.to, key, c.path[1], m.from,
				errdefs.ErrAlreadyExists)
		}
		if err := copyEntry(ctx, target, source, key); err != nil {
			return err
		}
	}
	if len(stay) == 0 {
		return c.in.DeleteBucket([]byte(m.from))
	}
	for _, key := range move {
		if err := remove(source, key); err != nil {
			return err
		}
	}
	if ofLease {
		return nil
	}
	for _, key := range stay {
		if err := m.part(source.Bucket(key), target, key); err != nil {
			return err
		}
	}
	return nil
}

// part has the parent of a snapshot that is left out no longer know it, and the snapshot keep its
// parent by a label.
func (m *mover) part(snapshot, target *bolt.Bucket, key []byte) error {
	parent := bytes.Clone(snapshot.Get([]byte(keyParent)))
	children := within(target, string(parent), keyChildren)
	if children == nil || children.Get(key) == nil {
		return nil
	}
	if err := keep(snapshot, labelRef+m.to+parentSuffix, string(parent)); err != nil {
		return fmt.Errorf("snapshot %q: %w", key, err)
	}
	return children.Delete(key)
}

// rejoin has the parent know the snapshot again, unless it does not exist any more.
func (m *mover) rejoin(tx *bolt.Tx, p parted) error {
	all := within(tx.Bucket([]byte(schema)), p.namespace, keySnapshots, m.to)
	name, err := keepNoLonger(within(all, p.key), labelRef+m.from+parentSuffix)
	if err != nil {
		return err
	}
	parent := within(all, name)
	if parent == nil {
		return nil
	}
	children, err := parent.CreateBucketIfNotExists([]byte(keyChildren))
	if err != nil {
		return err
	}
	return children.Put([]byte(p.key), []byte{})
}
