package diff

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

// account accounts for each changed block that is in use.
func (n *inodes) account(ctx context.Context) error {
	if len(n.pending) == 0 {
		return nil
	}
	var explained []ext4.Span
	explain := func(e ext4.Extent) error { return n.collect(ctx, &explained, e.Span) }
	if err := n.upper.ReservedBlocks(explain); err != nil {
		return err
	}
	for _, inode := range slices.Sorted(maps.Keys(n.changed)) {
		r, err := n.owner(inode)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		if err := n.upper.Extents(r, explain); err != nil {
			return fmt.Errorf("blocks of inode %d: %w", inode, err)
		}
	}
	n.pending = without(n.pending, ext4.Merge(explained))
	if err := n.sharedAttributes(); err != nil {
		return err
	}
	if err := n.compare(ctx); err != nil {
		return err
	}
	return n.owners(ctx)
}

// owner returns the record of an inode that may refer to changed blocks. It returns nil for an
// unused inode and for one of the file system's own.
func (n *inodes) owner(inode uint32) (ext4.Record, error) {
	if n.upper.Reserved(inode) {
		return nil, nil
	}
	if allocated, err := n.upper.Allocated(inode); err != nil || !allocated {
		return nil, err
	}
	return n.upper.Record(inode)
}

// after returns the pending blocks from the given block on.
func (n *inodes) after(block uint64) []ext4.Span {
	return n.pending[sort.Search(len(n.pending), func(i int) bool { return n.pending[i].End() > block }):]
}

// touches reports whether a block of a span is pending.
func (n *inodes) touches(s ext4.Span) bool {
	pending := n.after(s.Start)
	return len(pending) > 0 && pending[0].Start < s.End()
}

// collect appends the intersection of a span and the pending blocks.
func (n *inodes) collect(ctx context.Context, spans *[]ext4.Span, s ext4.Span) error {
	for _, p := range n.after(s.Start) {
		if p.Start >= s.End() {
			break
		}
		start, end := max(p.Start, s.Start), min(p.End(), s.End())
		*spans = append(*spans, ext4.Span{Start: start, Length: end - start})
	}
	if len(*spans) > 2*maxSpans {
		if *spans = ext4.Merge(*spans); len(*spans) > maxSpans {
			return fmt.Errorf("%w: inodes have the changed blocks in more than %d pieces", errUnproved, maxSpans)
		}
	}
	return ctx.Err()
}

// without returns spans minus others. Both are sorted, and neither has overlaps.
func without(spans, others []ext4.Span) (left []ext4.Span) {
	for _, s := range spans {
		at := s.Start
		for len(others) > 0 && others[0].End() <= at {
			others = others[1:]
		}
		for _, o := range others {
			if o.Start >= s.End() {
				break
			}
			if o.Start > at {
				left = append(left, ext4.Span{Start: at, Length: o.Start - at})
			}
			at = max(at, o.End())
		}
		if at < s.End() {
			left = append(left, ext4.Span{Start: at, Length: s.End() - at})
		}
	}
	return left
}

// Fields of struct ext4_xattr_header.
const (
	attributeMagic    = 0xEA020000
	attributeRefcount = 0x4
	attributeChecksum = 0x10
)

// sharedAttributes accounts for blocks of extended attributes, which inodes may share: a block is
// accounted for if all its inodes changed, or if only its reference count and checksum changed.
// Otherwise another inode refers to it, too, which owners finds.
func (n *inodes) sharedAttributes() error {
	var explained []ext4.Span
	for _, block := range slices.Sorted(maps.Keys(n.attributes)) {
		s := ext4.Span{Start: block, Length: 1}
		if !n.touches(s) {
			continue
		}
		lower, upper, err := n.both(s)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint32(upper) != attributeMagic {
			continue
		}
		all := binary.LittleEndian.Uint32(upper[attributeRefcount:]) == n.attributes[block]
		for _, side := range [][]byte{lower, upper} {
			clear(side[attributeRefcount:][:4])
			clear(side[attributeChecksum:][:4])
		}
		if all || bytes.Equal(lower, upper) {
			explained = append(explained, s)
		}
	}
	n.pending = without(n.pending, explained)
	return nil
}

// compare drops pending blocks that are equal on both sides. Most of the blocks left at this point
// are unchanged neighbours in a changed block of the pool.
func (n *inodes) compare(ctx context.Context) error {
	var differ []ext4.Span
	size := n.upper.BlockBytes()
	for _, p := range n.pending {
		for at := p.Start; at < p.End(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			s := ext4.Span{Start: at, Length: min(p.End()-at, readStep/size)}
			lower, upper, err := n.both(s)
			if err != nil {
				return err
			}
			for i := range s.Length {
				if !bytes.Equal(lower[i*size:(i+1)*size], upper[i*size:(i+1)*size]) {
					differ = appendBlock(differ, at+i)
				}
			}
			if len(differ) > maxSpans {
				return fmt.Errorf("%w: the blocks without an owner are in more than %d pieces", errUnproved, maxSpans)
			}
			at = s.End()
		}
	}
	n.pending = differ
	return nil
}

// appendBlock adds a block that follows all spans.
func appendBlock(spans []ext4.Span, block uint64) []ext4.Span {
	if last := len(spans) - 1; last >= 0 && spans[last].End() == block {
		spans[last].Length++
		return spans
	}
	return append(spans, ext4.Span{Start: block, Length: 1})
}

// owners finds the inodes that refer to the pending blocks, and counts them as changed.
func (n *inodes) owners(ctx context.Context) error {
	if len(n.pending) == 0 {
		return nil
	}
	var explained []ext4.Span
	err := n.upper.Records(func(inode uint32, r ext4.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n.upper.Reserved(inode) {
			return nil
		}
		owns := false
		explain := func(e ext4.Extent) error {
			owns = owns || n.touches(e.Span)
			return n.collect(ctx, &explained, e.Span)
		}
		if err := n.upper.Extents(r, explain); err != nil {
			return fmt.Errorf("blocks of inode %d: %w", inode, err)
		}
		if block := r.AttributeBlock(); block != 0 {
			if err := explain(ext4.Extent{Span: ext4.Span{Start: block, Length: 1}}); err != nil {
				return err
			}
		}
		if _, known := n.changed[inode]; known || !owns {
			return nil
		}
		return n.add(inode, r)
	})
	if err != nil {
		return fmt.Errorf("search for the owners of changed blocks: %w", err)
	}
	if n.pending = without(n.pending, ext4.Merge(explained)); len(n.pending) > 0 {
		return fmt.Errorf("%w: block %d changed and belongs to no inode", errUnproved, n.pending[0].Start)
	}
	return nil
}
