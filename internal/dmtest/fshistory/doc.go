// Package fshistory makes random histories of a file system: scripts of changes for a directory of
// ext4 or xfs, determined by a seed. They have every kind of change that a program can make, also
// changes without a trace in a file's times or size.
//
// A test compares its result with that of another program, and passes a failing script to [Shrink].
package fshistory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// Op is one change. The meaning of its fields depends on Do.
type Op struct {
	Do         string
	Path, To   string // relative to the root, without ".."
	At, Length int64  // bytes
	Value      uint64 // the seed of the content, a mode, an owner or a time
}

func (o Op) String() string {
	text := fmt.Sprintf("%s %q", o.Do, o.Path)
	if o.To != "" {
		text += fmt.Sprintf(" to=%q", o.To)
	}
	return text + fmt.Sprintf(" at=%d length=%d value=%#x", o.At, o.Length, o.Value)
}

// Script is a list of changes.
type Script []Op

// String has one line for each change.
func (s Script) String() string {
	var b strings.Builder
	for _, o := range s {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

// Generator makes scripts. It knows the results of the earlier ones.
type Generator struct {
	rand       *rand.Rand
	operations []operation
	tree       tree
	capable    []string // paths of files that were given capabilities
}

// New returns a generator for an empty directory on a file system of type ext4 or xfs. The seed and
// the type determine the scripts.
func New(seed uint64, filesystem string) *Generator {
	g := &Generator{rand: rand.New(rand.NewPCG(seed, 0)), tree: newTree()}
	for _, o := range operations() {
		if o.filesystem == "" || o.filesystem == filesystem {
			g.operations = append(g.operations, o)
		}
	}
	return g
}

// Names returns the names of all changes for a type of file system.
func Names(filesystem string) []string {
	names := []string{wholeTimes}
	for _, o := range New(0, filesystem).operations {
		names = append(names, o.name)
	}
	return names
}

// Fork returns a generator with the same knowledge as g that makes other scripts.
func (g *Generator) Fork(seed uint64) *Generator {
	forked := &Generator{rand: rand.New(rand.NewPCG(seed, 1)), operations: g.operations, capable: slices.Clone(g.capable)}
	forked.tree = tree{paths: slices.Clone(g.tree.paths), kinds: maps.Clone(g.tree.kinds)}
	return forked
}

// Image returns a script of at least n changes that make the tree of an image. In most, all
// modification times are whole seconds.
func (g *Generator) Image(n int) Script {
	s := g.script(n, func(o operation) int { return o.weight * o.image })
	if g.chance(80) {
		s = append(s, Op{Do: wholeTimes, Value: g.rand.Uint64()})
	}
	return s
}

// Changes returns a script of n changes of any kind.
func (g *Generator) Changes(n int) Script {
	return g.script(n, func(o operation) int { return o.weight })
}

func (g *Generator) script(n int, weight func(operation) int) Script {
	total := 0
	for _, o := range g.operations {
		total += weight(o)
	}
	var s Script
	for tries := 0; len(s) < n && tries < 20*n; tries++ {
		at := g.rand.IntN(total)
		for _, o := range g.operations {
			if at -= weight(o); at >= 0 {
				continue
			}
			if made, ok := o.choose(g); ok {
				made.Do = o.name
				s = append(s, made)
			}
			break
		}
	}
	return s
}

func (g *Generator) chance(percent int) bool { return g.rand.IntN(100) < percent }

// Shrink returns a shorter script for which fails returns true. It calls fails at most tries times.
func Shrink(s Script, tries int, fails func(Script) bool) Script {
	for part := (len(s) + 1) / 2; part > 0; part /= 2 {
		for at := 0; at < len(s); {
			if tries--; tries < 0 {
				return s
			}
			shorter := append(append(Script{}, s[:at]...), s[min(at+part, len(s)):]...)
			if fails(shorter) {
				s = shorter
			} else {
				at += part
			}
		}
	}
	return s
}
