package thinmeta

import (
	"context"
	"fmt"
)

// A Descent compares the mappings of a volume with those of its origin.
type Descent struct {
	// Shared is true if both map one of their blocks to the same block of the pool, or have the
	// same tree.
	Shared bool
	// Own is the number of blocks that the volume maps, but not to the same block of the pool as
	// its origin. Newest is the largest of their times, and Oldest the smallest; both are 0 if Own
	// is 0.
	Own            uint64
	Newest, Oldest uint32
}

// Descend compares a volume with its origin. For the zero Tree as the origin, all mappings are the
// volume's own.
//
// If the volume is a snapshot of its origin, and the origin was not written to since, each block
// has its origin's mapping, none, or its own. An own mapping has a time not less than the volume's
// CreationTime, and greater than that of any block of the origin. The duration is that of [Delta].
func Descend(ctx context.Context, origin, volume Tree) (Descent, error) {
	var found Descent
	d := newDelta(ctx, origin, volume, 0)
	d.own = func(m Mapping) {
		if found.Own++; found.Own == 1 {
			found.Oldest = m.Time
		}
		found.Newest, found.Oldest = max(found.Newest, m.Time), min(found.Oldest, m.Time)
	}
	if err := d.walk(0, func(Run) bool { return true }); err != nil {
		return Descent{}, fmt.Errorf("compare two mapping trees: %w", err)
	}
	found.Shared = d.shared
	return found, nil
}
