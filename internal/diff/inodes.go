package diff

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

// Inodes compares the inodes of an ext4 whose records or blocks changed, and finds their paths.
const Inodes Level = "inodes"

const (
	// maxInodes and maxSpans bound the memory for changed inodes and for runs of blocks.
	maxInodes = 1 << 20
	maxSpans  = 4 << 20
	// readStep is the number of bytes that are read of each side at a time.
	readStep = 256 << 10
)

// errUnproved is matched if the set of changed inodes cannot be proved complete.
var errUnproved = errors.New("not proved")

// inodes finds the inodes of an ext4 that may have changed.
//
// An inode is unchanged if its record is the same on both sides, except for the access time, and
// none of its blocks changed. So the changed blocks of the inode tables give the inodes whose
// records differ.
//
// Each other changed block in use must be accounted for. If it belongs neither to one of these
// inodes nor to the file system itself, all inodes are searched for the one that refers to it,
// which then counts as changed, too. If a block remains, the error is errUnproved.
type inodes struct {
	volumes      [2]Volume // lower, upper
	lower, upper *ext4.FileSystem
	spans        []ext4.Span // changed blocks, or blocks that may have changed
	// pending are those blocks that are in use, do not belong to the file system's own structures,
	// and are not accounted for. They are sorted and do not overlap.
	pending []ext4.Span
	changed map[uint32]struct{}
	// attributes counts, for each block of attributes, the changed inodes of upper that refer to
	// it.
	attributes map[uint64]uint32
	buffers    [2][]byte
}

// openInodes opens both file systems, and verifies that their records can be compared.
func openInodes(lower, upper Volume, changed []Range) (*inodes, error) {
	n := &inodes{volumes: [2]Volume{lower, upper}, changed: map[uint32]struct{}{}, attributes: map[uint64]uint32{}}
	var err error
	if n.lower, err = ext4.Open(lower.Device, lower.Bytes); err != nil {
		return nil, fmt.Errorf("lower: %w", err)
	}
	if n.upper, err = ext4.Open(upper.Device, upper.Bytes); err != nil {
		return nil, fmt.Errorf("upper: %w", err)
	}
	switch {
	case n.lower.Geometry() != n.upper.Geometry():
		return nil, fmt.Errorf("%w: the superblocks are of different file systems", errUnproved)
	case n.lower.Blocks() > n.upper.Blocks():
		return nil, fmt.Errorf("%w: the file system has become smaller", errUnproved)
	case !n.lower.SameTables(n.upper):
		return nil, fmt.Errorf("%w: the tables of inodes have moved", errUnproved)
	}
	bytes, blocks := n.upper.BlockBytes(), n.upper.Blocks()
	for _, r := range changed {
		first, end := r.Offset/bytes, (r.Offset+r.Length+bytes-1)/bytes
		if end = min(end, blocks); first < end {
			n.spans = append(n.spans, ext4.Span{Start: first, Length: end - first})
		}
	}
	n.spans = ext4.Merge(n.spans)
	return n, nil
}

// records finds the inodes whose records differ, and the blocks to account for.
func (n *inodes) records(ctx context.Context) error {
	structures := n.upper.Structures()
	for _, s := range n.spans {
		first, _ := slices.BinarySearchFunc(structures, s.Start, func(t ext4.Span, block uint64) int {
			if t.End() <= block {
				return -1
			}
			return 1
		})
		at := s.Start
		for _, t := range structures[first:] {
			if t.Start >= s.End() {
				break
			}
			if err := n.data(ctx, at, t.Start); err != nil {
				return err
			}
			from, to := max(at, t.Start), min(s.End(), t.End())
			if err := n.structure(ctx, from, to); err != nil {
				return err
			}
			at = to
		}
		if err := n.data(ctx, at, s.End()); err != nil {
			return err
		}
	}
	return nil
}

// data adds the used blocks of a span to the pending blocks.
func (n *inodes) data(ctx context.Context, from, to uint64) error {
	for block := from; block < to; block++ {
		if block%(1<<16) == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		used, err := n.upper.Used(block)
		if err != nil {
			return err
		}
		if !used {
			continue
		}
		if n.pending = appendBlock(n.pending, block); len(n.pending) > maxSpans {
			return fmt.Errorf("%w: the changed blocks are in more than %d pieces", errUnproved, maxSpans)
		}
	}
	return nil
}

// structure compares the inode records in a span of the file system's own structures.
func (n *inodes) structure(ctx context.Context, from, to uint64) error {
	for at := from; at < to; {
		if _, count := n.upper.InodesIn(at); count == 0 {
			at++
			continue
		}
		end := at + 1
		for ; end < to && (end-at)*n.upper.BlockBytes() < readStep; end++ {
			if _, count := n.upper.InodesIn(end); count == 0 {
				break
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.table(ext4.Span{Start: at, Length: end - at}); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// table compares the records in blocks of the inode tables.
func (n *inodes) table(s ext4.Span) error {
	lower, upper, err := n.both(s)
	if err != nil {
		return err
	}
	size, bytes := n.upper.RecordBytes(), int(n.upper.BlockBytes())
	for i := range int(s.Length) {
		first, count := n.upper.InodesIn(s.Start + uint64(i))
		for k := range count {
			inode, at := first+uint32(k), i*bytes+k*size
			a, b := ext4.Record(lower[at:at+size]), ext4.Record(upper[at:at+size])
			if uint64(inode) > n.lower.Inodes() {
				a = make(ext4.Record, size) // a group that lower does not have
			}
			if a.Same(b) {
				continue
			}
			if err := n.add(inode, b); err != nil {
				return err
			}
			if block := a.AttributeBlock(); block != 0 {
				n.attributes[block] += 0
			}
		}
	}
	return nil
}

// add counts an inode as changed. The record is upper's.
func (n *inodes) add(inode uint32, r ext4.Record) error {
	if len(n.changed) == maxInodes {
		return fmt.Errorf("%w: more than %d inodes changed", errUnproved, maxInodes)
	}
	n.changed[inode] = struct{}{}
	allocated, err := n.upper.Allocated(inode)
	if err != nil {
		return err
	}
	if block := r.AttributeBlock(); block != 0 && allocated {
		n.attributes[block]++
	}
	return nil
}

// both reads the same blocks of both sides. lower may be too small to have them. The result is
// valid until the next call.
func (n *inodes) both(s ext4.Span) (lower, upper []byte, err error) {
	offset, length := s.Start*n.upper.BlockBytes(), s.Length*n.upper.BlockBytes()
	for i, v := range n.volumes {
		if uint64(len(n.buffers[i])) < length {
			n.buffers[i] = make([]byte, max(length, readStep))
		}
		piece := n.buffers[i][:length]
		clear(piece)
		if i == 0 && offset >= v.Bytes {
			continue
		}
		if got, err := v.Device.ReadAt(piece[:min(length, v.Bytes-offset)], int64(offset)); err != nil {
			return nil, nil, fmt.Errorf("read %d of %d bytes at %d: %w", got, length, offset, err)
		}
	}
	return n.buffers[0][:length], n.buffers[1][:length], nil
}
