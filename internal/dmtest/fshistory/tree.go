package fshistory

import (
	"path"
	"slices"
	"strings"
)

// kind is the type of a path.
type kind byte

const (
	dir kind = iota + 1
	file
	link  // symbolic
	other // a device, a pipe, a socket
	crowd // a directory with many entries, which are not in the tree
)

// Limits of paths: a path with a client's root and one more component must fit into PATH_MAX.
const (
	maxDepth = 8
	maxPath  = 3000
	maxName  = 255
)

// tree has the paths that a script has made. "" is the root.
type tree struct {
	paths []string // in the order of creation, which is reproducible
	kinds map[string]kind
}

func newTree() tree { return tree{kinds: map[string]kind{"": dir}} }

func (t *tree) add(p string, k kind) {
	if _, known := t.kinds[p]; !known {
		t.paths = append(t.paths, p)
	}
	t.kinds[p] = k
}

// inside returns true if p is dir or below it.
func inside(dir, p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// remove removes a path and all paths below it.
func (t *tree) remove(p string) {
	t.paths = slices.DeleteFunc(t.paths, func(q string) bool {
		if inside(p, q) {
			delete(t.kinds, q)
			return true
		}
		return false
	})
}

// move renames a path and all paths below it. It replaces the new path.
func (t *tree) move(from, to string) {
	t.remove(to)
	t.rename(func(q string) string {
		if inside(from, q) {
			return to + q[len(from):]
		}
		return q
	})
}

// exchange swaps two paths, neither of which is inside the other.
func (t *tree) exchange(a, b string) {
	t.rename(func(q string) string {
		switch {
		case inside(a, q):
			return b + q[len(a):]
		case inside(b, q):
			return a + q[len(b):]
		}
		return q
	})
}

func (t *tree) rename(name func(string) string) {
	kinds := map[string]kind{"": dir}
	for i, p := range t.paths {
		t.paths[i] = name(p)
		kinds[t.paths[i]] = t.kinds[p]
	}
	t.kinds = kinds
}

func (t *tree) empty(p string) bool {
	return !slices.ContainsFunc(t.paths, func(q string) bool { return q != p && inside(p, q) })
}

// height returns the number of levels below a path.
func (t *tree) height(p string) int {
	high := 0
	for _, q := range t.paths {
		if inside(p, q) {
			high = max(high, strings.Count(q[len(p):], "/"))
		}
	}
	return high
}

// pick returns a path of one of the kinds, but not the root.
func (g *Generator) pick(kinds ...kind) (string, bool) {
	var of []string
	for _, p := range g.tree.paths {
		if slices.Contains(kinds, g.tree.kinds[p]) {
			of = append(of, p)
		}
	}
	if len(of) == 0 {
		return "", false
	}
	return of[g.rand.IntN(len(of))], true
}

// fresh returns an unused path in a directory that is not inside the path without, and that has
// space for room more levels.
func (g *Generator) fresh(without string, room int) (string, bool) {
	for range 10 {
		parent := ""
		if p, ok := g.pick(dir); ok && g.chance(85) {
			parent = p
		}
		if without != "" && inside(without, parent) || strings.Count(parent, "/")+room > maxDepth {
			continue
		}
		p := path.Join(parent, g.name())
		if _, known := g.tree.kinds[p]; !known && len(p) < maxPath {
			return p, true
		}
	}
	return "", false
}

// name returns the name of a file. Most names are short, from few bytes that sort before and after
// "/", so that names repeat and are prefixes of each other.
func (g *Generator) name() string {
	var b []byte
	switch n := g.rand.IntN(20); {
	case n == 0: // any bytes
		b = make([]byte, 1+g.rand.IntN(12))
		for i := range b {
			b[i] = byte(g.rand.Uint32())
		}
	case n == 1: // long, possibly stored separately
		b = []byte(strings.Repeat(string(rune('a'+g.rand.IntN(4))), 100+g.rand.IntN(maxName-99)))
	case n == 2:
		b = []byte(".wh." + string(rune('a'+g.rand.IntN(4))))
	case n < 12:
		const letters = "ab.-0\x01\xff~"
		b = make([]byte, 1+g.rand.IntN(3))
		for i := range b {
			b[i] = letters[g.rand.IntN(len(letters))]
		}
	default:
		b = []byte("file" + string(rune('0'+g.rand.IntN(10))) + string(rune('0'+g.rand.IntN(10))))
	}
	for i, c := range b {
		if c == 0 || c == '/' {
			b[i] = '_'
		}
	}
	if s := string(b); s == "." || s == ".." {
		return "dot"
	}
	return string(b)
}
