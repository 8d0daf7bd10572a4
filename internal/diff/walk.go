package diff

import (
	"context"
	"fmt"
	"os"
	"strings"

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
	lower, err := os.ReadDir(w.lower + dir)
	if err != nil {
		return err
	}
	upper, err := os.ReadDir(w.upper + dir)
	if err != nil {
		return err
	}
	for len(lower) > 0 || len(upper) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		var order int
		switch {
		case len(lower) == 0:
			order = 1
		case len(upper) == 0:
			order = -1
		default:
			order = strings.Compare(lower[0].Name(), upper[0].Name())
		}
		switch {
		case order < 0:
			w.add(fs.ChangeKindDelete, dir+"/"+lower[0].Name(), nil)
			w.paths++
			lower = lower[1:]
		case order > 0:
			if err := w.added(ctx, dir+"/"+upper[0].Name()); err != nil {
				return err
			}
			upper = upper[1:]
		default:
			if err := w.pair(ctx, dir+"/"+upper[0].Name()); err != nil {
				return err
			}
			lower, upper = lower[1:], upper[1:]
		}
	}
	return nil
}

// pair compares a path that both sides have.
func (w *walk) pair(ctx context.Context, path string) error {
	w.paths += 2
	lower, err := os.Lstat(w.lower + path)
	if err != nil {
		return err
	}
	upper, err := os.Lstat(w.upper + path)
	if err != nil {
		return err
	}
	same, err := w.same(ctx, path, lower, upper)
	if err != nil {
		return err
	}
	if same {
		w.add(fs.ChangeKindUnmodified, path, upper)
	} else {
		w.add(fs.ChangeKindModify, path, upper)
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

// added adds a path that only upper has, and what is below it.
func (w *walk) added(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.paths++
	info, err := os.Lstat(w.upper + path)
	if err != nil {
		return err
	}
	w.add(fs.ChangeKindAdd, path, info)
	if !info.IsDir() {
		return nil
	}
	return w.below(ctx, path)
}

// below adds what is below a directory of upper.
func (w *walk) below(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(w.upper + dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := w.added(ctx, dir+"/"+entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

// collected are changes in the order of a walk.
type collected struct {
	all    []linked
	linked map[uint64]struct{} // files with several names that were added or modified
}

type linked struct {
	Change
	inode uint64 // 0 if this is its only name
}

// add adds a change. The info is upper's; a deleted path has none. An unmodified path counts only if it is one of
// several names of its file.
func (c *collected) add(kind fs.ChangeKind, path string, info os.FileInfo) {
	change := linked{Change: Change{Kind: kind, Path: path}}
	if info != nil {
		if inode, ok := fs.GetLinkInfo(info); ok {
			change.inode = inode
		}
	}
	switch {
	case kind == fs.ChangeKindUnmodified && change.inode == 0:
		return
	case kind != fs.ChangeKindUnmodified && change.inode != 0:
		if c.linked == nil {
			c.linked = map[uint64]struct{}{}
		}
		c.linked[change.inode] = struct{}{}
	}
	c.all = append(c.all, change)
}

// changes returns the changes, without unmodified names of files that have not changed.
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
