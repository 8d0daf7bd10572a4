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

// A mover renames the snapshotter in all entries that name it.
type mover struct {
	from, to string
	leave    LeaveOut
	back     bool // Restore: merge with existing entries of the restored name (to)
	changes  []change
	detached []detached // snapshots to put back into their parent's list
}

// change is an entry to change.
type change struct {
	in   *bolt.Bucket
	path []string
	key  []byte
	at   place
	keep string // of a container: the key of its snapshot, if that is left out
}

// detached is a snapshot that was left out and removed from its parent's list.
type detached struct{ namespace, key string }

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
		return fmt.Errorf("%s names %q already: choose another name, or remove it: %w", show(path, string(e.key)), m.to,
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
	for _, p := range m.detached {
		if err := m.reattach(tx, p); err != nil {
			return err
		}
	}
	return nil
}

// collect adds an entry that names the snapshotter, unless it is a label of a snapshot that is left
// out.
func (m *mover) collect(b *bolt.Bucket, path []string, e entry) error {
	c, out := change{in: b, path: path, key: bytes.Clone(e.key), at: e.at}, m.leave[namespaceOf(path)]
	switch {
	case e.at == bucketName && path[2] == keySnapshots:
		if err := m.leave.requireClosed(path[1], e.bucket); err != nil {
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
	// Entries within a bucket were visited before the bucket, so its copy has their new names.
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

// container makes a container keep its snapshot that is left out, or undoes that.
func (m *mover) container(c change) error {
	switch {
	case c.keep != "":
		return keep(c.in, labelRef+m.from+containerSuffix, c.keep)
	case m.back && c.path[2] == keyContainers:
		_, err := removeKeep(c.in, labelRef+m.to+containerSuffix)
		return err
	}
	return nil
}

func (m *mover) label(c change) error {
	before, _, after, _ := splitLabel(c.key)
	key := slices.Concat(before, []byte(m.to), after)
	value := append([]byte{}, c.in.Get(c.key)...)
	ofLeftOut := snapshotRecord(c.path[:len(c.path)-1]) && c.path[3] == m.to
	if m.back && ofLeftOut && string(c.key) == labelRef+m.from+parentSuffix {
		m.detached = append(m.detached, detached{c.path[1], c.path[4]})
		return nil
	}
	switch taken := c.in.Get(key); {
	case taken != nil && !bytes.Equal(taken, value):
		return fmt.Errorf("its value %q differs from that of the same label for %q, %q: remove one of the two: %w", value,
			m.to, taken, errdefs.ErrAlreadyExists)
	case !m.back && len(key)+len(value) > maxLabel && len(key) > len(c.key):
		return fmt.Errorf("the label would have %d bytes with the name %q, and containerd accepts %d: "+
			"choose a shorter name: %w", len(key)+len(value), m.to, maxLabel, errdefs.ErrFailedPrecondition)
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
	// CreateBucket resets the sequence, and no number may be used twice.
	if err := target.SetSequence(max(source.Sequence(), target.Sequence())); err != nil {
		return err
	}
	for _, key := range move {
		if target.Bucket(key) != nil || target.Get(key) != nil {
			if ofLease {
				continue
			}
			return fmt.Errorf("%q also has a snapshot %q in namespace %q: remove that of %q "+
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
		if err := m.detach(source.Bucket(key), target, key); err != nil {
			return err
		}
	}
	return nil
}

// detach removes a snapshot that is left out from its parent's list, and makes it keep its parent by
// a label.
func (m *mover) detach(snapshot, target *bolt.Bucket, key []byte) error {
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

// reattach puts a snapshot back into its parent's list, if the parent exists.
func (m *mover) reattach(tx *bolt.Tx, p detached) error {
	all := within(tx.Bucket([]byte(schema)), p.namespace, keySnapshots, m.to)
	name, err := removeKeep(within(all, p.key), labelRef+m.from+parentSuffix)
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
