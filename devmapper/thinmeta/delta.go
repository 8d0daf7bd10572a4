package thinmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

// Tree is the mapping tree of a volume. The zero Tree has no mappings.
//
// While the volume exists and is not written to, no commit of the pool writes to the blocks of its
// tree. A change of another volume copies the blocks that both share (dm_tm_shadow_block in
// drivers/md/persistent-data/dm-transaction-manager.c).
type Tree struct {
	r    io.ReaderAt
	root uint64
}

// Tree returns the mapping tree of a volume, or [ErrNoDevice] if there is no such volume.
func (m *Metadata) Tree(ctx context.Context, id uint32) (Tree, error) {
	_, t, err := m.device(ctx, id)
	if err != nil {
		return Tree{}, fmt.Errorf("volume %d: %w", id, err)
	}
	return Tree{r: m.r, root: t.root}, nil
}

// Root returns the metadata block of the tree's root, 0 for the zero Tree. A volume keeps its root
// until it is written to, and then has another. The kernel may reuse the old block some commits
// later.
func (t Tree) Root() uint64 { return t.root }

// Run is a run of blocks of two volumes, left and right, that are not mapped to the same blocks of
// the pool.
type Run struct {
	Virtual, Length uint64 // the first block of the volumes, and the number of blocks
	Left, Right     bool   // whether the left volume maps them, and the right one; at least one does
}

// Delta yields, in order, the blocks that only one volume maps, or that both map to different blocks
// of the pool. Blocks of two volumes of one pool that are mapped to the same block have the same
// content. An error ends the sequence.
//
// It does not read shared parts of the trees. So its time grows with the changes since one volume
// was created as a snapshot of the other, or both of a third. Even on damaged metadata it reads each
// block at most once for each tree, except those on the path to the first leaf: twice.
func Delta(ctx context.Context, left, right Tree) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		d := newDelta(ctx, left, right, 0)
		err := d.walk(0, func(r Run) bool { return yield(r, nil) })
		if err != nil {
			yield(Run{}, fmt.Errorf("compare two mapping trees: %w", err))
		}
	}
}

// Changed returns the number of blocks, from block first on, that a volume maps, but not to the
// same block of the pool as its origin. It stops after reading the given number of nodes of the
// trees, 0 for no limit, but always makes progress. It returns the block to continue from, or more
// as false at the end.
func Changed(
	ctx context.Context, origin, volume Tree, first uint64, nodes int,
) (count, next uint64, more bool, err error) {
	d := newDelta(ctx, origin, volume, first)
	err = d.walk(nodes, func(r Run) bool {
		if r.Right {
			count += r.Length
		}
		return true
	})
	if err != nil {
		return 0, 0, false, fmt.Errorf("compare two mapping trees: %w", err)
	}
	next, more = d.position()
	return count, next, more, nil
}

// delta is a simultaneous walk down two trees.
type delta struct {
	left, right cursor
	first       uint64
	nodes       int // read
	run         Run // not yet yielded

	shared bool            // both have a part of their trees, or a block of the pool, in common
	own    func(m Mapping) // called with each mapping that only the right tree has, unless nil
}

func newDelta(ctx context.Context, left, right Tree, first uint64) *delta {
	d := &delta{first: first}
	d.left.start(ctx, left, first, &d.nodes)
	d.right.start(ctx, right, first, &d.nodes)
	return d
}

// walk yields runs until the trees end, yield returns false, or the given number of nodes was read,
// 0 for no limit.
func (d *delta) walk(nodes int, yield func(Run) bool) error {
	l, r := &d.left, &d.right
	if l.same(r) {
		d.skip()
	}
	for _, c := range []*cursor{l, r} {
		if err := c.measure(); err != nil {
			return err
		}
	}
	for {
		at, more := d.position()
		if !more || nodes > 0 && d.nodes >= nodes && at > d.first {
			break
		}
		var err error
		switch {
		case l.same(r):
			d.skip()
		case r.ended() || !l.ended() && l.item.low < r.item.low:
			err = d.step(l, true, yield)
		case l.ended() || r.item.low < l.item.low:
			err = d.step(r, false, yield)
		case l.atMapping() && r.atMapping() && l.item.value>>timeBits == r.item.value>>timeBits:
			d.skip()
		case l.atMapping() && r.atMapping():
			if !d.add(r, true, true, yield) {
				return nil
			}
			l.next()
			r.next()
		case l.item.height >= r.item.height: // the other node may be below this one
			err = l.enter()
		default:
			err = r.enter()
		}
		switch {
		case errors.Is(err, errStopped):
			return nil
		case err != nil:
			return err
		}
	}
	if d.run.Length > 0 {
		yield(d.run)
	}
	return nil
}

var errStopped = errors.New("stopped by the caller")

// step enters a node of one tree, or adds and skips a block that only this tree maps.
func (d *delta) step(c *cursor, left bool, yield func(Run) bool) error {
	if !c.atMapping() {
		return c.enter()
	}
	if !d.add(c, left, !left, yield) {
		return errStopped
	}
	c.next()
	return nil
}

// skip skips an item that both trees have.
func (d *delta) skip() {
	d.shared = true
	d.left.next()
	d.right.next()
}

// add adds the mapping at a cursor to the run, and yields the run before it if that has ended. If
// both trees map the block, the cursor must be that of the right tree. It returns false if yield
// does.
func (d *delta) add(c *cursor, left, right bool, yield func(Run) bool) bool {
	virtual := c.item.low
	if right && d.own != nil {
		d.own(mappingOf(virtual, c.item.value))
	}
	if d.run.Length > 0 && d.run.Virtual+d.run.Length == virtual && d.run.Left == left && d.run.Right == right {
		d.run.Length++
		return true
	}
	last := d.run
	d.run = Run{Virtual: virtual, Length: 1, Left: left, Right: right}
	return last.Length == 0 || yield(last)
}

// position returns the first block that is not yet compared, and whether there is one.
func (d *delta) position() (at uint64, more bool) {
	at = math.MaxUint64
	for _, c := range []*cursor{&d.left, &d.right} {
		if !c.ended() {
			at, more = min(at, c.item.low), true
		}
	}
	return max(at, d.first), more
}

// mappingHeight is the height of a mapping. A leaf has height 0, and each other node one more than
// its children.
const mappingHeight = -1

// item is a part of a tree: a node that is not yet read, or a mapping.
type item struct {
	height    int
	low, high uint64 // limits of the keys at and below it
	value     uint64 // the node's block, or the mapping's block time
}

// cursor is at an item of a tree, and moves to the items after and below it.
type cursor struct {
	walk
	item  item
	nodes *int
	depth int // of the entered nodes; -1 at the end
	at    [maxDepth]struct {
		node
		high         uint64
		height, next int
	}
}

func (c *cursor) start(ctx context.Context, t Tree, first uint64, nodes *int) {
	c.walk = walk{tree: t.tree(), ctx: ctx, first: first}
	c.nodes = nodes
	c.item = item{high: math.MaxUint64, value: t.root}
	if t.r == nil {
		c.depth = -1
	}
}

func (c *cursor) ended() bool { return c.depth < 0 }

func (c *cursor) atMapping() bool { return c.item.height == mappingHeight }

// same reports whether both are at the same node.
func (c *cursor) same(other *cursor) bool {
	return !c.ended() && !other.ended() && !c.atMapping() && !other.atMapping() &&
		c.item.value == other.item.value
}

// measure sets the height and the first key of a tree's root.
func (c *cursor) measure() error {
	if c.ended() {
		return nil
	}
	low, number := uint64(0), c.root
	for depth := 0; ; depth++ {
		n, err := c.read(number, depth, low, math.MaxUint64)
		if err != nil {
			return err
		}
		if n.count == 0 { // an empty tree
			c.depth = -1
			return nil
		}
		if depth == 0 {
			c.item.low = n.key(0)
		}
		if n.leaf {
			c.item.height = depth
			return nil
		}
		low, number = n.key(0), n.child(0)
	}
}

func (c *cursor) read(number uint64, depth int, low, high uint64) (node, error) {
	*c.nodes++
	n, err := c.load(number, depth, low, high)
	if err != nil {
		err = fmt.Errorf("block %d: %w", number, err)
	}
	return n, err
}

// enter reads the node at the cursor, and moves to the first item in it.
func (c *cursor) enter() error {
	entered := c.item
	n, err := c.read(entered.value, c.depth, entered.low, entered.high)
	if err == nil && n.leaf != (entered.height == 0) {
		err = fmt.Errorf("block %d: %w: the leaves of its tree are not at one depth", entered.value, ErrDamaged)
	}
	if err != nil {
		return err
	}
	at := &c.at[c.depth]
	at.node, at.high, at.height, at.next = n, entered.high, entered.height, 0
	c.depth++
	c.next()
	return nil
}

func (c *cursor) next() {
	for c.depth--; c.depth >= 0; c.depth-- {
		at := &c.at[c.depth]
		for at.next < at.count {
			i := at.next
			at.next++
			c.item = item{height: at.height - 1, low: at.key(i), high: at.high}
			if i+1 < at.count {
				c.item.high = at.key(i+1) - 1
			}
			if at.leaf {
				c.item.high = c.item.low
			}
			c.item.value = binary.LittleEndian.Uint64(at.value(i)) // in an internal node, a child
			if c.item.high >= c.first {
				c.depth++
				return
			}
		}
	}
}
