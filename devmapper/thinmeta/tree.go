package thinmeta

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
)

// maxDepth limits the height of a tree. The kernel keeps nodes at least a third full, with 84 keys,
// so keys of 64 bits need at most 11 levels.
const maxDepth = 16

type tree struct {
	r          io.ReaderAt
	root       uint64
	valueBytes int // of a value in a leaf
	// skip, if set, is called before a node is read. If it returns true, the node and all below it
	// are skipped.
	skip func(block uint64) bool
}

// entry is a key and its value, which is valid until the next entry.
type entry struct {
	block uint64 // the leaf, for errors
	key   uint64
	value []byte
}

// entries yields the entries with keys in first..last, in order. An error ends the sequence.
func (t tree) entries(ctx context.Context, first, last uint64) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		w := walk{tree: t, ctx: ctx, first: first, last: last, yield: yield}
		w.visit(t.root, 0, 0, ^uint64(0))
	}
}

// get returns the entry of a key. Its value is nil if there is none.
func (t tree) get(ctx context.Context, key uint64) (entry, error) {
	for e, err := range t.entries(ctx, key, key) {
		return e, err
	}
	return entry{}, nil
}

// walk is one pass over a tree. It ends even on hostile blocks: a node's keys must lie between its
// parent's key for it and the next one, and only a root may be empty. So a block is valid in only
// one place of a tree. path shows a block that is below itself.
type walk struct {
	tree
	ctx         context.Context
	first, last uint64
	yield       func(entry, error) bool
	path        [maxDepth]uint64
	blocks      [maxDepth]*block
}

// visit yields the entries at and below a node whose keys must be in low..high. It returns false to
// end the walk.
func (w *walk) visit(number uint64, depth int, low, high uint64) bool {
	if w.skip != nil && w.skip(number) {
		return true
	}
	n, err := w.load(number, depth, low, high)
	if err != nil {
		w.yield(entry{}, fmt.Errorf("block %d: %w", number, err))
		return false
	}
	for i := range n.count {
		key, end := n.key(i), high
		if i+1 < n.count {
			end = n.key(i+1) - 1
		}
		switch {
		case key > w.last:
			return false
		case n.leaf:
			if key >= w.first && !w.yield(entry{block: number, key: key, value: n.value(i)}, nil) {
				return false
			}
		case end >= w.first:
			if !w.visit(n.child(i), depth+1, key, end) {
				return false
			}
		}
	}
	return true
}

func (w *walk) load(number uint64, depth int, low, high uint64) (node, error) {
	if err := w.ctx.Err(); err != nil {
		return node{}, err
	}
	if depth == maxDepth {
		return node{}, fmt.Errorf("%w: it is at a depth of more than %d levels", ErrDamaged, maxDepth)
	}
	if slices.Contains(w.path[:depth], number) {
		return node{}, fmt.Errorf("%w: it is below itself", ErrDamaged)
	}
	w.path[depth] = number
	if w.blocks[depth] == nil {
		w.blocks[depth] = new(block)
	}
	b := w.blocks[depth]
	if err := b.read(w.r, number); err != nil {
		return node{}, err
	}
	n, err := decodeNode(b, number, w.valueBytes)
	if err != nil {
		return node{}, err
	}
	if n.count == 0 {
		if n.leaf && depth == 0 {
			return n, nil
		}
		return node{}, fmt.Errorf("%w: a node without entries", ErrDamaged)
	}
	if n.key(0) < low || n.key(n.count-1) > high {
		return node{}, fmt.Errorf("%w: keys %d..%d, not in %d..%d",
			ErrDamaged, n.key(0), n.key(n.count-1), low, high)
	}
	return n, nil
}

// leaf returns the entries of the leaf that has the key, or else the next larger one. It returns
// none if all keys are smaller.
func (t tree) leaf(ctx context.Context, key uint64) (map[uint64][]byte, error) {
	number := uint64(0)
	for e, err := range t.entries(ctx, key, ^uint64(0)) {
		if err != nil {
			return nil, err
		}
		number = e.block
		break
	}
	entries := make(map[uint64][]byte)
	if number == 0 {
		return entries, nil
	}
	t.root = number
	for e, err := range t.entries(ctx, 0, ^uint64(0)) {
		if err != nil {
			return nil, err
		}
		entries[e.key] = slices.Clone(e.value)
	}
	return entries, nil
}
