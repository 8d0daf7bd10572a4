package thinmeta

import "fmt"

const (
	internalFlag = 1 // INTERNAL_NODE
	leafFlag     = 2 // LEAF_NODE

	nodeHeaderBytes = 32
	keyBytes        = 8
	pointerBytes    = 8
)

// node is a block of a B-tree (dm-btree-internal.h: struct btree_node): a header, space for max
// keys, and space for max values in the same order.
type node struct {
	*block
	leaf       bool
	count      int // of keys
	max        int
	valueBytes int
}

// decodeNode decodes a node of a tree whose leaves have values of the given size
// in bytes. It checks that the keys are in order.
func decodeNode(b *block, number uint64, leafValueBytes int) (node, error) {
	if err := b.verify(number, nodeSalt); err != nil {
		return node{}, err
	}
	flags, count, limit, valueBytes := b.u32(4), b.u32(16), b.u32(20), b.u32(24)
	want := leafValueBytes
	switch flags {
	case leafFlag:
	case internalFlag:
		want = pointerBytes
	default:
		return node{}, fmt.Errorf("%w: unknown flags %#x of a node", ErrDamaged, flags)
	}
	if uint64(valueBytes) != uint64(want) {
		return node{}, fmt.Errorf("%w: values of %d bytes, not %d", ErrDamaged, valueBytes, want)
	}
	if fit := (blockBytes - nodeHeaderBytes) / (keyBytes + want); uint64(limit) > uint64(fit) {
		return node{}, fmt.Errorf("%w: room for %d entries where %d fit", ErrDamaged, limit, fit)
	}
	if count > limit {
		return node{}, fmt.Errorf("%w: %d entries in room for %d", ErrDamaged, count, limit)
	}
	n := node{block: b, leaf: flags == leafFlag, count: int(count), max: int(limit), valueBytes: want}
	for i := 1; i < n.count; i++ {
		if n.key(i-1) >= n.key(i) {
			return node{}, fmt.Errorf("%w: key %d before %d", ErrDamaged, n.key(i-1), n.key(i))
		}
	}
	return n, nil
}

func (n node) key(i int) uint64 { return n.u64(nodeHeaderBytes + i*keyBytes) }

// value is valid until the next read into the block.
func (n node) value(i int) []byte {
	offset := nodeHeaderBytes + n.max*keyBytes + i*n.valueBytes
	return n.block[offset : offset+n.valueBytes]
}

// child returns the block that an internal node's entry points to.
func (n node) child(i int) uint64 {
	return n.u64(nodeHeaderBytes + n.max*keyBytes + i*pointerBytes)
}
