package thinmeta

import (
	"context"
	"fmt"
	"iter"
)

// Inherits reports whether child can be a snapshot of parent, parent not having
// been changed since. [ErrNoDevice] if one of them does not exist.
//
// The kernel raises the pool's time, to T, makes the snapshot with T as its
// CreationTime, and notes T as the parent's SnapshottedTime (__create_snap). A
// block that is mapped carries the time of that (__insert), and a block of an
// earlier time than a volume's SnapshottedTime is never written in place but
// mapped anew. So child's mappings with a time below T are exactly those that it
// had from its creation and has not written or discarded since, and a mapping of
// parent with T or later was made after that. The answer is true if
//
//   - parent was made before T, and a snapshot of it was made at T or later;
//   - whatever child has with a time below T, parent has with the same block of
//     the pool and the same time;
//   - parent has nothing with a time of T or later.
//
// What child wrote or discarded does not matter, nor do other snapshots of parent.
//
// It is false for a true child and parent if parent was written after T, or
// discarded a block that child still has. (A write that was under way when the
// snapshot was made of a volume that was not suspended counts as after.) It is
// also false once the time has outgrown the 24 bits that a mapping has for it;
// the kernel's own metadata is wrong then.
//
// It is true for a parent that is not the true one if a snapshot was made of that
// at T or later, it was not written since T, and it has, at the same place, all
// that child still has of its true parent. That can be an ancestor or an earlier
// sibling; and, if child has nothing left of what it began with, any volume. One
// that was not made as a snapshot began with nothing. So true proves that child
// has nothing that it cannot have from parent, not who its parent was.
func (m *Metadata) Inherits(ctx context.Context, child, parent uint32) (bool, error) {
	c, childTree, err := m.device(ctx, child)
	if err != nil {
		return false, fmt.Errorf("volume %d: %w", child, err)
	}
	p, parentTree, err := m.device(ctx, parent)
	if err != nil {
		return false, fmt.Errorf("volume %d: %w", parent, err)
	}
	if p.CreationTime >= c.CreationTime || p.SnapshottedTime < c.CreationTime {
		return false, nil
	}
	next, stop := iter.Pull2(mappings(ctx, childTree))
	defer stop()
	// inherited is child's next mapping that it had from its creation.
	inherited := func() (Mapping, bool, error) {
		for {
			had, err, more := next()
			if err != nil {
				return Mapping{}, false, fmt.Errorf("mappings of volume %d: %w", child, err)
			}
			if !more || had.Time < c.CreationTime {
				return had, more, nil
			}
		}
	}
	had, more, err := inherited()
	if err != nil {
		return false, err
	}
	for has, err := range mappings(ctx, parentTree) {
		if err != nil {
			return false, fmt.Errorf("mappings of volume %d: %w", parent, err)
		}
		if has.Time >= c.CreationTime {
			return false, nil
		}
		if !more || has.Virtual < had.Virtual {
			continue
		}
		if has != had {
			return false, nil
		}
		if had, more, err = inherited(); err != nil {
			return false, err
		}
	}
	return !more, nil
}
