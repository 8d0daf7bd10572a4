package diff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/containerd/continuity/fs"
)

// walk compares two directory trees.
type walk struct {
	comparison
	collected
	paths uint64
}

// list is List by a walk.
func list(ctx context.Context, lower, upper Volume, changed []Range) (Listing, error) {
	w := walk{comparison: comparison{lower: lower.Root, upper: upper.Root, changed: changed}}
	var err error
	if w.bounds, err = newBounds(upper.Root); err != nil {
		return Listing{}, err
	}
	compare := w.both
	if lower == (Volume{}) {
		compare = w.below
	}
	if err := compare(ctx, ""); err != nil {
		return Listing{}, fmt.Errorf("compare directories: %w", err)
	}
	return Listing{Changes: w.changes(), Level: Walk, Paths: w.paths, Read: w.read}, nil
}

// both compares a directory that both sides have. The path of the root is "".
func (w *walk) both(ctx context.Context, dir string) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	lower, err := w.names(w.lower + dir)
	if err != nil {
		return err
	}
	upper, err := w.names(w.upper + dir)
	if err != nil {
		return err
	}
	for a, b := range byName(lower, upper, func(name string) string { return name }) {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case b == nil:
			err = w.deleted(dir + "/" + *a)
		case a == nil:
			err = w.added(ctx, dir+"/"+*b)
		default:
			err = w.pair(ctx, dir+"/"+*b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// byName merges two lists that are sorted by name. It yields entries with the same name together,
// and others with nil for the missing side.
func byName[E any](lower, upper []E, name func(E) string) iter.Seq2[*E, *E] {
	return func(yield func(*E, *E) bool) {
		for len(lower) > 0 || len(upper) > 0 {
			var a, b *E
			switch {
			case len(upper) == 0, len(lower) > 0 && name(lower[0]) < name(upper[0]):
				a, lower = &lower[0], lower[1:]
			case len(lower) == 0, name(upper[0]) < name(lower[0]):
				b, upper = &upper[0], upper[1:]
			default:
				a, b, lower, upper = &lower[0], &upper[0], lower[1:], upper[1:]
			}
			if !yield(a, b) {
				return
			}
		}
	}
}

// compare compares a path that both sides have, and adds it if it changed.
func (w *walk) compare(ctx context.Context, path string) (lower, upper os.FileInfo, err error) {
	w.paths += 2
	if lower, err = os.Lstat(w.lower + path); err != nil {
		return nil, nil, err
	}
	if upper, err = os.Lstat(w.upper + path); err != nil {
		return nil, nil, err
	}
	same, err := w.same(ctx, path, lower, upper)
	if err != nil {
		return nil, nil, err
	}
	kind := fs.ChangeKind(fs.ChangeKindModify)
	if same {
		kind = fs.ChangeKindUnmodified
	}
	return lower, upper, w.add(kind, path, upper)
}

// pair compares a path that both sides have, and its tree.
func (w *walk) pair(ctx context.Context, path string) error {
	lower, upper, err := w.compare(ctx, path)
	if err != nil {
		return err
	}
	switch {
	case !upper.IsDir():
		return nil
	case lower.IsDir():
		return w.both(ctx, path)
	default:
		return w.below(ctx, path)
	}
}

// deleted adds a path that only lower has.
func (w *walk) deleted(path string) error {
	w.paths++
	return w.add(fs.ChangeKindDelete, path, nil)
}

// added adds a path that only upper has, and its tree.
func (w *walk) added(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.paths++
	info, err := os.Lstat(w.upper + path)
	if err != nil {
		return err
	}
	if err := w.add(fs.ChangeKindAdd, path, info); err != nil || !info.IsDir() {
		return err
	}
	return w.below(ctx, path)
}

// below adds the tree of a directory of upper.
func (w *walk) below(ctx context.Context, dir string) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	names, err := w.names(w.upper + dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.added(ctx, dir+"/"+name); err != nil {
			return err
		}
	}
	return nil
}

// namesAtATime is the number of names that are read of a directory before they are counted.
const namesAtATime = 1024

// names returns the sorted names in a directory.
func (w *walk) names(dir string) (names []string, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for {
		more, err := f.Readdirnames(namesAtATime)
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		for _, name := range more {
			if err := w.list(name); err != nil {
				return nil, fmt.Errorf("list %s: %w", dir, err)
			}
		}
		names = append(names, more...)
	}
}

// collected are changes in the order of a walk.
type collected struct {
	bounds
	all    []linked
	linked map[uint64]struct{} // added or modified files with several names
}

type linked struct {
	Change
	inode uint64 // 0 if this is its only name
}

// add adds a change. The info is upper's; a deleted path has none. An unmodified path is added only
// if its file has several names.
func (c *collected) add(kind fs.ChangeKind, path string, info os.FileInfo) error {
	change := linked{Change: Change{Kind: kind, Path: path}}
	if info != nil {
		if inode, ok := fs.GetLinkInfo(info); ok {
			change.inode = inode
		}
	}
	switch {
	case kind == fs.ChangeKindUnmodified && change.inode == 0:
		return nil
	case kind != fs.ChangeKindUnmodified && change.inode != 0:
		if c.linked == nil {
			c.linked = map[uint64]struct{}{}
		}
		c.linked[change.inode] = struct{}{}
	}
	c.all = append(c.all, change)
	return c.keep(path)
}

// changes returns the changes, without the names of unmodified files.
func (c *collected) changes() []Change {
	changes := make([]Change, 0, len(c.all))
	for _, change := range c.all {
		if change.Kind == fs.ChangeKindUnmodified {
			if _, ok := c.linked[change.inode]; !ok {
				continue
			}
		}
		changes = append(changes, change.Change)
	}
	return changes
}
