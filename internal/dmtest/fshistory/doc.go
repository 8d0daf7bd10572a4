// Package fshistory makes random histories of a file system: scripts of changes that are the same for
// the same seed, for any directory of ext4 or xfs. They have every kind of change that a program can
// make, also those that leave no trace in a file's times or size.
//
// A test compares what it computes with what another program says, and passes a script that fails to
// [Shrink].
package fshistory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// Op is one change. What its fields mean depends on Do.
type Op struct {
	Do         string
	Path, To   string // relative to the root, without ".."
	At, Length int64  // bytes
	Value      uint64 // seed of the content, mode, owner, time
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

// Generator makes scripts. It knows what the earlier ones have made.
type Generator struct {
	rand       *rand.Rand
	operations []operation
	tree       tree
	capable    []string // paths whose files were given capabilities
}

// New returns a generator for an empty directory of a file system of type ext4 or xfs. Scripts are the
// same for the same seed and type.
func New(seed uint64, filesystem string) *Generator {
	g := &Generator{rand: rand.New(rand.NewPCG(seed, 0)), tree: newTree()}
	for _, o := range operations() {
		if o.filesystem == "" || o.filesystem == filesystem {
			g.operations = append(g.operations, o)
		}
	}
	return g
}

// Names returns the names of all changes on a type of file system.
func Names(filesystem string) []string {
	names := []string{wholeTimes}
	for _, o := range New(0, filesystem).operations {
		names = append(names, o.name)
	}
	return names
}

// Fork returns a generator that knows what g knows, and makes other scripts.
func (g *Generator) Fork(seed uint64) *Generator {
	forked := &Generator{rand: rand.New(rand.NewPCG(seed, 1)), operations: g.operations, capable: slices.Clone(g.capable)}
	forked.tree = tree{paths: slices.Clone(g.tree.paths), kinds: maps.Clone(g.tree.kinds)}
	return forked
}

// Image returns a script of n changes or more that make a tree as an image has it: in most, all times
// of modification are whole seconds.
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

// Shrink returns a shorter script for which fails still reports true. It runs fails at most tries times.
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
