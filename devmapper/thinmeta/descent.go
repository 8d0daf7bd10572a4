package thinmeta

import (
	"context"
	"fmt"
)

// A Descent tells how what a volume maps relates to what another one maps, its origin.
type Descent struct {
	// Shared tells whether both map a block of the pool at the same place, or have the same tree.
	Shared bool
	// Own is the number of blocks that the volume maps and its origin does not map to the same block of
	// the pool. Newest is the largest of their times, and Oldest the smallest; both are 0 if Own is 0.
	Own            uint64
	Newest, Oldest uint32
}

// Descend compares a volume with its origin. Against the zero Tree, all that it maps is its own.
//
// A volume that is a snapshot of its origin, which was not written to since, has at each block what its
// origin has, or none, or a block of its own: one whose time is not less than the volume's CreationTime,
// and more than that of any block of the origin. The time it takes is that of [Delta].
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
		return Descent{}, fmt.Errorf("compare two trees of mappings: %w", err)
	}
	found.Shared = d.shared
	return found, nil
}
