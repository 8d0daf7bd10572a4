package metadata

import (
	"bytes"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// The index of children uses device ids: they are short, and a snapshot that is committed mostly
// keeps its id. Views have no id of their own, so they are indexed by key, in a separate part: the
// Views of a volume are then counted without its other children.
const (
	childVolume = 'c'
	childView   = 'v'
)

// childKey returns the key of a snapshot in the index of children, or nil for an active or
// committed snapshot without a parent.
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

// ForEachIn calls fn for every snapshot of a key space, as ForEach does.
func (t *Tx) ForEachIn(space string, fn func(Snapshot) error) error {
	begin, below := keyRange(space)
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

// ForEach calls fn for every snapshot in byte order of the keys, until fn returns an error. It
// returns that error.
func (t *Tx) ForEach(fn func(Snapshot) error) error {
	return t.buckets.snapshots.ForEach(func(k, v []byte) error {
		s, err := decodeSnapshot(string(k), v)
		if err != nil {
			return err
		}
		return fn(s)
	})
}

// Page limits the result of After.
type Page struct {
	Records int // maximum number
	// Bytes ends a page as soon as its encoded records, or with NoLabels their keys, have this size.
	// In memory they are larger.
	Bytes int
	// NoLabels leaves Labels nil, which saves memory.
	NoLabels bool
	// Space selects a key space; nil selects all.
	Space *string
}

// After returns the page of snapshots after key, in byte order of the keys, and whether more follow
// it. The key need not exist; an empty one starts with the first snapshot.
func (t *Tx) After(key string, p Page) (page []Snapshot, more bool, err error) {
	bytes, below := 0, ""
	if p.Space != nil {
		var begin string
		begin, below = keyRange(*p.Space)
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

// Children calls fn with the key of every child of the snapshot, Views last, until fn returns an
// error. It returns that error.
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

// Views returns the number of Views of a volume. Its cost grows only with that number.
func (t *Tx) Views(device uint32) (int, error) {
	n := 0
	err := t.eachChild(childPrefix(device, childView), func([]byte) error {
		n++
		return nil
	})
	return n, err
}

// ViewOf returns the key of one View of a volume, and false if it has none.
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

// eachChild calls fn for each key in the index of children that has the prefix, with the rest of
// it: an id or a key.
func (t *Tx) eachChild(prefix []byte, fn func(child []byte) error) error {
	c := t.buckets.children.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if err := fn(k[len(prefix):]); err != nil {
			return err
		}
	}
	return nil
}
