package fshistory

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// maxInCrowd limits the entries that one change adds to a crowd.
const maxInCrowd = 400

func nameOperations() []operation {
	return []operation{
		{name: "mkdir", weight: 8, image: 4, choose: newPath(dir), apply: (*Run).mkdir},
		{name: "symlink", weight: 4, image: 2, choose: newPath(link), apply: (*Run).symlink},
		{name: "symlink again", weight: 2, choose: change(link), apply: (*Run).symlinkAgain},
		{name: "mknod", weight: 4, image: 1, choose: newPath(other), apply: (*Run).mknod},
		{name: "link", weight: 6, image: 1, choose: chooseLink, apply: (*Run).link},
		{name: "link, unlink", weight: 3, choose: chooseMove(1, file, link, other), apply: (*Run).relink},
		{name: "unlink", weight: 6, choose: chooseRemove(file, link, other), apply: (*Run).unlink},
		{name: "unlink, held", weight: 2, choose: chooseRemove(file), apply: (*Run).unlinkHeld},
		{name: "rmdir", weight: 2, choose: chooseRmdir, apply: (*Run).unlink},
		{name: "remove all", weight: 2, choose: chooseRemove(dir, crowd), apply: (*Run).removeAll},
		{name: "rename", weight: 5, choose: chooseMove(1, file, link, other), apply: (*Run).rename},
		{name: "rename over", weight: 4, choose: chooseRenameOver, apply: (*Run).rename},
		{name: "rename directory", weight: 3, choose: chooseMove(0, dir, crowd), apply: (*Run).rename},
		{name: "rename directory over", weight: 1, choose: chooseRenameDirOver, apply: (*Run).rename},
		{name: "exchange", weight: 2, choose: chooseExchange, apply: (*Run).exchange},
		{name: "directory to file", weight: 2, choose: chooseReplace(dir, file), apply: (*Run).directoryToFile},
		{name: "file to directory", weight: 2, choose: chooseReplace(file, dir), apply: (*Run).fileToDirectory},
		{name: "new crowd", weight: 1, image: 1, choose: newPath(crowd), apply: (*Run).newCrowd},
		{name: "add to crowd", weight: 2, choose: change(crowd), apply: (*Run).addToCrowd},
		{name: "remove from crowd", weight: 2, choose: change(crowd), apply: (*Run).removeFromCrowd},
	}
}

// values sets the fields that operations use as random numbers.
func (g *Generator) values(o Op) Op {
	o.At, o.Length, o.Value = g.offset(), g.length(), g.rand.Uint64()
	return o
}

func newPath(k kind) func(*Generator) (Op, bool) {
	return func(g *Generator) (Op, bool) {
		p, ok := g.fresh("", 1)
		if ok {
			g.tree.add(p, k)
		}
		return g.values(Op{Path: p}), ok
	}
}

// change chooses a path for operations that do not change paths.
func change(kinds ...kind) func(*Generator) (Op, bool) {
	return func(g *Generator) (Op, bool) {
		p, ok := g.pick(kinds...)
		return g.values(Op{Path: p}), ok
	}
}

func chooseLink(g *Generator) (Op, bool) {
	p, ok := g.pick(file, file, link, other)
	to, room := g.fresh("", 1)
	if !ok || !room {
		return Op{}, false
	}
	g.tree.add(to, g.tree.kinds[p])
	return Op{Path: p, To: to}, true
}

func chooseMove(room int, kinds ...kind) func(*Generator) (Op, bool) {
	return func(g *Generator) (Op, bool) {
		p, ok := g.pick(kinds...)
		if !ok {
			return Op{}, false
		}
		to, ok := g.fresh(p, max(room, 1+g.tree.height(p)))
		if ok {
			g.tree.move(p, to)
		}
		return Op{Path: p, To: to}, ok
	}
}

func chooseRemove(kinds ...kind) func(*Generator) (Op, bool) {
	return func(g *Generator) (Op, bool) {
		p, ok := g.pick(kinds...)
		g.tree.remove(p)
		return g.values(Op{Path: p}), ok
	}
}

func chooseRmdir(g *Generator) (Op, bool) {
	p, ok := g.pick(dir)
	if !ok || !g.tree.empty(p) {
		return Op{}, false
	}
	g.tree.remove(p)
	return Op{Path: p}, true
}

func chooseRenameOver(g *Generator) (Op, bool) {
	p, ok := g.pick(file, link, other)
	to, _ := g.pick(file, link, other)
	if !ok || p == to {
		return Op{}, false
	}
	g.tree.move(p, to)
	return Op{Path: p, To: to}, true
}

func chooseRenameDirOver(g *Generator) (Op, bool) {
	p, ok := g.pick(dir, crowd)
	to, has := g.pick(dir)
	if !ok || !has || inside(p, to) || inside(to, p) || !g.tree.empty(to) {
		return Op{}, false
	}
	g.tree.move(p, to)
	return Op{Path: p, To: to}, true
}

func chooseExchange(g *Generator) (Op, bool) {
	p, ok := g.pick(dir, file, link, other, crowd)
	to, _ := g.pick(dir, file, link, other, crowd)
	if !ok || inside(p, to) || inside(to, p) {
		return Op{}, false
	}
	g.tree.exchange(p, to)
	return Op{Path: p, To: to}, true
}

func chooseReplace(from, to kind) func(*Generator) (Op, bool) {
	return func(g *Generator) (Op, bool) {
		p, ok := g.pick(from)
		if ok {
			g.tree.remove(p)
			g.tree.add(p, to)
		}
		return g.values(Op{Path: p}), ok
	}
}

func (r *Run) mkdir(o Op) error {
	modes := []uint32{0o755, 0o700, 0o1777, 0o2755}
	p := r.path(o.Path)
	if err := unix.Mkdir(p, 0o700); err != nil {
		return err
	}
	return unix.Chmod(p, modes[o.Value%uint64(len(modes))])
}

// target returns the target of a link, which is relative and has no "..", so that it is below the
// root.
func target(value uint64) string {
	name := fmt.Sprintf("target-%x", value)
	if value%3 == 0 { // too long for the inode
		for range value%7 + 4 {
			name += "/" + name[:16]
		}
	}
	return name
}

func (r *Run) symlink(o Op) error { return unix.Symlink(target(o.Value), r.path(o.Path)) }

// symlinkAgain gives a link another target, and in half of the cases the times of the old one.
func (r *Run) symlinkAgain(o Op) error {
	again := func() error {
		if err := unix.Unlink(r.path(o.Path)); err != nil {
			return err
		}
		return r.symlink(o)
	}
	if o.At%2 == 0 {
		return again()
	}
	return r.keepingTimes(o.Path, again)
}

func (r *Run) mknod(o Op) error {
	types := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}
	device := unix.Mkdev(uint32(o.Value>>8)%500, uint32(o.Value>>24)%70000)
	return unix.Mknod(r.path(o.Path), types[o.Value%4]|0o640, int(device))
}

func (r *Run) link(o Op) error {
	return unix.Linkat(unix.AT_FDCWD, r.path(o.Path), unix.AT_FDCWD, r.path(o.To), 0)
}

func (r *Run) relink(o Op) error {
	if err := r.link(o); err != nil {
		return err
	}
	return unix.Unlink(r.path(o.Path))
}

func (r *Run) unlink(o Op) error {
	var st unix.Stat_t
	if err := unix.Lstat(r.path(o.Path), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.Rmdir(r.path(o.Path))
	}
	return unix.Unlink(r.path(o.Path))
}

// unlinkHeld removes an open file and continues to write to it.
func (r *Run) unlinkHeld(o Op) error {
	f, err := r.open(o.Path, os.O_RDWR)
	if err != nil {
		return err
	}
	r.held = append(r.held, f.Close)
	if err := unix.Unlink(r.path(o.Path)); err != nil {
		return err
	}
	_, err = f.WriteAt(content(o.Value, o.Length), o.At)
	return err
}

func (r *Run) removeAll(o Op) error { return os.RemoveAll(r.path(o.Path)) }

func (r *Run) rename(o Op) error {
	if _, err := os.Lstat(r.path(o.Path)); err != nil {
		return err
	}
	return unix.Rename(r.path(o.Path), r.path(o.To))
}

func (r *Run) exchange(o Op) error {
	return unix.Renameat2(unix.AT_FDCWD, r.path(o.Path), unix.AT_FDCWD, r.path(o.To), unix.RENAME_EXCHANGE)
}

func (r *Run) directoryToFile(o Op) error {
	if err := r.removeAll(o); err != nil {
		return err
	}
	return r.create(o)
}

func (r *Run) fileToDirectory(o Op) error {
	if err := unix.Unlink(r.path(o.Path)); err != nil {
		return err
	}
	if err := r.mkdir(o); err != nil {
		return err
	}
	return r.create(Op{Path: path.Join(o.Path, "inside"), Length: o.Length, Value: o.Value})
}

func (r *Run) newCrowd(o Op) error {
	if err := r.mkdir(o); err != nil {
		return err
	}
	return r.addToCrowd(o)
}

func (r *Run) addToCrowd(o Op) error {
	for i := range o.Value % maxInCrowd {
		err := unix.Mknod(r.member(o, i), unix.S_IFREG|0o644, 0)
		if err != nil && err != unix.EEXIST {
			return err
		}
	}
	return nil
}

func (r *Run) removeFromCrowd(o Op) error {
	for i := uint64(0); i < 2*maxInCrowd; i += 1 + o.Value%7 {
		if err := unix.Unlink(r.member(o, i)); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

func (r *Run) member(o Op, i uint64) string {
	return r.path(path.Join(o.Path, fmt.Sprintf("member-%04d", (i+uint64(o.At))%(2*maxInCrowd))))
}
