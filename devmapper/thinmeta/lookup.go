package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Lookup returns the mapping of a block of the volume. mapped is false if there is none: the block
// then reads as zeroes.
func (t Tree) Lookup(ctx context.Context, virtual uint64) (m Mapping, mapped bool, err error) {
	if t.r == nil {
		return Mapping{}, false, nil
	}
	e, err := t.tree().get(ctx, virtual)
	if err != nil || e.value == nil {
		return Mapping{}, false, wrap(err)
	}
	return mappingOf(virtual, binary.LittleEndian.Uint64(e.value)), true, nil
}

// End returns the block after the last one that the volume maps, or 0 if it maps none.
func (t Tree) End(ctx context.Context) (uint64, error) {
	if t.r == nil {
		return 0, nil
	}
	w := walk{tree: t.tree(), ctx: ctx}
	low, number := uint64(0), t.root
	for depth := 0; ; depth++ {
		n, err := w.load(number, depth, low, ^uint64(0))
		switch {
		case err != nil:
			return 0, wrap(fmt.Errorf("block %d: %w", number, err))
		case n.count == 0:
			return 0, nil
		case n.leaf:
			return n.key(n.count-1) + 1, nil
		}
		low, number = n.key(n.count-1), n.child(n.count-1)
	}
}

func (t Tree) tree() tree { return tree{r: t.r, root: t.root, valueBytes: blockTimeBytes} }

func wrap(err error) error {
	if err != nil {
		err = fmt.Errorf("read a mapping tree: %w", err)
	}
	return err
}
