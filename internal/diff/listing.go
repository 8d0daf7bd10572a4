package diff

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"

	"github.com/containerd/continuity/fs"
)

// listInodes is List by changed inodes. After an error other than the context's, a walk is needed.
func listInodes(ctx context.Context, lower, upper Volume, changed []Range) (Listing, error) {
	n, err := openInodes(lower, upper, changed)
	if err != nil {
		return Listing{}, fmt.Errorf("compare inodes: %w", err)
	}
	if err := n.records(ctx); err != nil {
		return Listing{}, fmt.Errorf("compare inodes: %w", err)
	}
	if err := n.account(ctx); err != nil {
		return Listing{}, fmt.Errorf("account for changed blocks: %w", err)
	}
	return n.list(ctx, changed)
}

// list lists the paths of the changed inodes.
func (n *inodes) list(ctx context.Context, changed []Range) (Listing, error) {
	lower, upper := n.volumes[0], n.volumes[1]
	for _, v := range n.volumes {
		if info, err := os.Lstat(v.Root + "/."); err != nil || inodeOf(info) != rootInode {
			return Listing{}, fmt.Errorf("%w: %s is not the root of a file system", errUnproved, v.Root)
		}
	}
	limits, err := newBounds(upper.Root)
	if err != nil {
		return Listing{}, err
	}
	found, err := n.locate(ctx, limits)
	if err != nil {
		return Listing{}, fmt.Errorf("search for the names of inodes: %w", err)
	}
	p := paths{
		walk:    walk{comparison: comparison{lower: lower.Root, upper: upper.Root, changed: changed}},
		changed: n.changed, towards: found.towards,
	}
	p.bounds = limits
	if err := p.directory(ctx, "", rootInode, rootInode); err != nil {
		return Listing{}, fmt.Errorf("compare directories: %w", err)
	}
	if err := n.furtherNames(ctx, &p.collected, found); err != nil {
		return Listing{}, fmt.Errorf("search for further names: %w", err)
	}
	return Listing{
		Changes: p.changes(), Level: Inodes, Inodes: uint64(len(n.changed)), Paths: p.paths + found.listed, Read: p.read,
	}, nil
}

func inodeOf(info os.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}

// locate finds the names of the changed inodes in upper. It lists the changed directories and their
// parents, then the likely directories of the other inodes, and then all directories, until each
// name is found.
func (n *inodes) locate(ctx context.Context, limits bounds) (*names, error) {
	s := &names{bounds: limits, root: n.volumes[1].Root, wanted: map[uint32]struct{}{}}
	for _, inode := range slices.Sorted(maps.Keys(n.changed)) { // in the order of the tables
		r, err := n.upper.Record(inode)
		if err != nil {
			return nil, err
		}
		if r.Mode() != 0 && r.Links() > 0 && !n.upper.Reserved(inode) {
			s.wanted[inode] = struct{}{}
		}
	}
	return s, n.search(ctx, s)
}

func (n *inodes) search(ctx context.Context, s *names) error {
	lists := []func() error{
		func() (err error) {
			s.directories, err = ancestors(ctx, n.upper, s.wanted)
			return err
		},
		func() error { return s.addNearby(ctx, n.upper) },
		func() error {
			s.directories = nil
			return nil
		},
	}
	for _, list := range lists {
		if err := list(); err != nil {
			return err
		}
		if err := s.search(ctx); err != nil {
			return err
		}
		if whole, err := s.complete(n.upper); err != nil || whole {
			return err
		}
	}
	return errNameless
}

// errNameless is returned if an inode's record has more links than the directories have names for
// it: an entry claims that a directory is a file, or the link count is wrong.
var errNameless = fmt.Errorf("%w: an inode has fewer names in directories than its record says", errUnproved)

// furtherNames adds the unchanged names of files that changed under another name.
func (n *inodes) furtherNames(ctx context.Context, c *collected, found *names) error {
	listed := map[string]struct{}{}
	for _, change := range c.all {
		if change.inode != 0 && change.Kind != fs.ChangeKindDelete {
			listed[change.Path] = struct{}{}
		}
	}
	more := &names{bounds: found.bounds, root: found.root, wanted: map[uint32]struct{}{}}
	for inode := range c.linked {
		if _, known := found.found[uint32(inode)]; !known {
			more.wanted[uint32(inode)] = struct{}{}
		}
	}
	if err := n.dropListed(more, c); err != nil {
		return err
	}
	if len(more.wanted) > 0 {
		if err := more.search(ctx); err != nil {
			return err
		}
		if whole, err := more.complete(n.upper); err != nil || !whole {
			return cmp.Or(err, errNameless)
		}
		found.listed += more.listed
	}
	added := false
	for inode := range c.linked {
		for _, path := range slices.Concat(found.found[uint32(inode)], more.found[uint32(inode)]) {
			if _, ok := listed[path]; !ok {
				c.all = append(c.all, linked{Change{fs.ChangeKindUnmodified, path}, inode})
				added = true
			}
		}
	}
	if added {
		slices.SortFunc(c.all, func(a, b linked) int { return comparePaths(a.Path, b.Path) })
	}
	return nil
}

// dropListed removes the inodes from wanted whose names are all listed.
func (n *inodes) dropListed(wanted *names, c *collected) error {
	count := map[uint32]int{}
	for _, change := range c.all {
		if change.Kind != fs.ChangeKindDelete {
			count[uint32(change.inode)]++
		}
	}
	for _, inode := range slices.Sorted(maps.Keys(wanted.wanted)) {
		r, err := n.upper.Record(inode)
		if err != nil {
			return err
		}
		if count[inode] == int(r.Links()) {
			delete(wanted.wanted, inode)
		}
	}
	return nil
}

// comparePaths orders paths as a walk does: "/" sorts before any other byte.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		switch {
		case x == y:
		case x == '/':
			return -1
		case y == '/':
			return 1
		default:
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// paths compares the directories that have changed inodes in their trees.
type paths struct {
	walk
	changed, towards map[uint32]struct{}
}

// directory compares a directory that both sides have. If both sides have the same, unchanged
// inode, they have the same entries, and only the changed inodes below can differ.
func (p *paths) directory(ctx context.Context, dir string, lower, upper uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if lower == upper && !has(p.changed, upper) && !has(p.towards, upper) {
		return nil
	}
	leave, err := p.enter()
	if err != nil {
		return err
	}
	defer leave()
	if lower == upper && !has(p.changed, upper) {
		list, err := p.entries(p.upper, dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := p.entry(ctx, dir+"/"+e.name, e, e); err != nil {
				return err
			}
		}
		return nil
	}
	a, err := p.entries(p.lower, dir)
	if err != nil {
		return err
	}
	b, err := p.entries(p.upper, dir)
	if err != nil {
		return err
	}
	for l, u := range byName(a, b, func(e entry) string { return e.name }) {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case u == nil:
			err = p.deleted(dir + "/" + l.name)
		case l == nil:
			err = p.added(ctx, dir+"/"+u.name)
		default:
			err = p.entry(ctx, dir+"/"+u.name, *l, *u)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry compares a path that both sides have.
func (p *paths) entry(ctx context.Context, path string, lower, upper entry) error {
	if lower.inode == upper.inode && !has(p.changed, upper.inode) {
		if upper.dir {
			return p.directory(ctx, path, lower.inode, upper.inode)
		}
		return nil
	}
	a, b, err := p.compare(ctx, path)
	if err != nil {
		return err
	}
	if inodeOf(a) != uint64(lower.inode) || inodeOf(b) != uint64(upper.inode) || b.IsDir() != upper.dir {
		return fmt.Errorf("%w: %s is not the inode in its directory's entry", errUnproved, path)
	}
	switch {
	case !b.IsDir():
		return nil
	case a.IsDir():
		return p.directory(ctx, path, lower.inode, upper.inode)
	default:
		return p.below(ctx, path)
	}
}

func has(set map[uint32]struct{}, inode uint32) bool {
	_, ok := set[inode]
	return ok
}
