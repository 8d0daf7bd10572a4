package metadata

import (
	"bytes"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// The index of children has device ids instead of keys: ids are short, so that the index has few
// pages to write, and a committed snapshot keeps its id. Views have no id of their own: they are
// indexed by their keys, in a part of their own, so that the Views of a volume are counted without
// its other children.
const (
	childVolume = 'c'
	childView   = 'v'
)

// childKey is the key of a snapshot in the index of children; nil for an active or committed
// snapshot without a parent.
func childKey(s, parent Snapshot) []byte {
	switch {
	case s.Kind == snapshots.KindView:
		return append(childPrefix(s.VolumeID, childView), s.Key...)
	case parent.Key != "":
		return append(childPrefix(parent.VolumeID, childVolume), encodeDevice(s.VolumeID)...)
	default:
		return nil
	}
}

func childPrefix(device uint32, part ...byte) []byte {
	return append(encodeDevice(device), part...)
}

// ForEachIn calls fn with every snapshot of a key space, as ForEach does.
func (t *Tx) ForEachIn(space string, fn func(Snapshot) error) error {
	begin, below := inSpace(space)
	c := t.buckets.snapshots.Cursor()
	for k, v := c.Seek([]byte(begin)); k != nil && string(k) < below; k, v = c.Next() {
		s, err := decodeSnapshot(string(k), v)
		if err != nil {
			return err
		}
		if err := fn(s); err != nil {
			return err
		}
	}
	return nil
}

// ForEach calls fn with every snapshot, in the order of their keys' bytes, until it returns an
// error, which is returned.
func (t *Tx) ForEach(fn func(Snapshot) error) error {
	return t.buckets.snapshots.ForEach(func(k, v []byte) error {
		s, err := decodeSnapshot(string(k), v)
		if err != nil {
			return err
		}
		return fn(s)
	})
}

// Page limits what After returns.
type Page struct {
	Records int // at most
	// Bytes is the size of records at which a page ends; they are smaller in the store than in
	// memory.
	Bytes int
	// NoLabels leaves Labels nil, and saves their memory.
	NoLabels bool
	// Space is the key space that it is of, nil for all.
	Space *string
}

// After returns the page of snapshots after key, which need not exist, in the order of their keys'
// bytes, and whether more follow it. An empty key begins with the first.
func (t *Tx) After(key string, p Page) (page []Snapshot, more bool, err error) {
	bytes, below := 0, ""
	if p.Space != nil {
		var begin string
		begin, below = inSpace(*p.Space)
		key = max(key, begin)
	}
	c := t.buckets.snapshots.Cursor()
	k, v := c.Seek([]byte(key))
	if string(k) == key {
		k, v = c.Next()
	}
	isIn := func() bool { return k != nil && (below == "" || string(k) < below) }
	for ; isIn() && len(page) < p.Records && bytes < p.Bytes; k, v = c.Next() {
		d := newDecoder(v)
		d.noLabels = p.NoLabels
		s, err := d.snapshot(string(k))
		if err != nil {
			return nil, false, err
		}
		page = append(page, s)
		if bytes += len(k); !p.NoLabels {
			bytes += len(v)
		}
	}
	return page, isIn(), nil
}

// Children calls fn with the key of every snapshot whose parent this one is, views last, until it
// returns an error, which is returned.
func (t *Tx) Children(key string, fn func(child string) error) error {
	s, err := t.Get(key)
	if err != nil {
		return err
	}
	if s.Kind != snapshots.KindCommitted {
		return nil
	}
	if err := t.eachChild(childPrefix(s.VolumeID, childVolume), func(id []byte) error {
		device, err := decodeDevice(id)
		if err != nil {
			return err
		}
		owner, owned := t.Owner(device)
		if !owned || owner.Kind != OwnerSnapshot {
			return damaged("child %d of snapshot %q", device, key)
		}
		return fn(owner.Key)
	}); err != nil {
		return err
	}
	return t.eachChild(childPrefix(s.VolumeID, childView), func(view []byte) error { return fn(string(view)) })
}

// Parents returns the ancestors of a snapshot, its parent first.
func (t *Tx) Parents(key string) ([]Snapshot, error) {
	s, err := t.Get(key)
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	seen := map[string]bool{key: true}
	for s.Parent != "" {
		child := s.Key
		if s, err = t.Get(s.Parent); err != nil {
			return nil, fmt.Errorf("parent of %q: %w", child, err)
		}
		if seen[s.Key] {
			return nil, damaged("snapshot %q is its own ancestor", s.Key)
		}
		seen[s.Key] = true
		all = append(all, s)
	}
	return all, nil
}

// Views returns the number of Views that show a volume. Its cost grows with that number only.
func (t *Tx) Views(device uint32) (int, error) {
	n := 0
	err := t.eachChild(childPrefix(device, childView), func([]byte) error {
		n++
		return nil
	})
	return n, err
}

// ViewOf returns the key of a View that shows a volume, and false if none does.
func (t *Tx) ViewOf(device uint32) (key string, found bool) {
	prefix := childPrefix(device, childView)
	k, _ := t.buckets.children.Cursor().Seek(prefix)
	view, found := bytes.CutPrefix(k, prefix)
	if !found {
		return "", false
	}
	return string(view), true
}

func (t *Tx) hasChildren(s Snapshot) bool {
	if s.Kind != snapshots.KindCommitted {
		return false
	}
	prefix := childPrefix(s.VolumeID)
	k, _ := t.buckets.children.Cursor().Seek(prefix)
	return bytes.HasPrefix(k, prefix)
}

// eachChild calls fn with each child in the index under the prefix: an id or a key.
func (t *Tx) eachChild(prefix []byte, fn func(child []byte) error) error {
	c := t.buckets.children.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if err := fn(k[len(prefix):]); err != nil {
			return err
		}
	}
	return nil
}
