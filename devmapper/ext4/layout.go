package ext4

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// Span is a run of blocks.
type Span struct{ Start, Length uint64 }

// End returns the block after the span.
func (s Span) End() uint64 { return s.Start + s.Length }

// hasSuperblock reports whether a group has a copy of the superblock (ext4_bg_has_super).
func (sb *superblock) hasSuperblock(group uint64) bool {
	if group == 0 {
		return true
	}
	if sb.compat&compatSparseSuper2 != 0 {
		return group == uint64(binary.LittleEndian.Uint32(sb.backups[:])) ||
			group == uint64(binary.LittleEndian.Uint32(sb.backups[4:]))
	}
	if group == 1 || sb.roCompat&roCompatSparseSuper == 0 {
		return true
	}
	return group&1 != 0 && (isPower(group, 3) || isPower(group, 5) || isPower(group, 7))
}

func isPower(n, base uint64) bool {
	for n%base == 0 {
		n /= base
	}
	return n == 1
}

// head returns the number of blocks at the beginning of a group for the superblock, descriptors,
// and blocks reserved for descriptors (ext4_num_base_meta_clusters).
func (sb *superblock) head(group uint64) uint64 {
	super := uint64(0)
	if sb.hasSuperblock(group) {
		super = 1
	}
	perBlock := sb.groupsPerBlock()
	if sb.incompat&incompatMetaBG != 0 && group/perBlock >= uint64(sb.firstMetaGroup) {
		if at := group % perBlock; at == 0 || at == 1 || at == perBlock-1 {
			return super + 1
		}
		return super
	}
	if super == 0 {
		return 0
	}
	descriptors := sb.descriptorBlocks()
	if sb.incompat&incompatMetaBG != 0 {
		descriptors = uint64(sb.firstMetaGroup)
	}
	return 1 + descriptors + uint64(sb.reservedGDTBlocks)
}

// descriptorBlock returns the place of block n of the descriptors (descriptor_loc).
func (sb *superblock) descriptorBlock(n uint64) uint64 {
	if sb.incompat&incompatMetaBG == 0 || n < uint64(sb.firstMetaGroup) {
		return uint64(sb.firstBlock) + 1 + n
	}
	group := n * sb.groupsPerBlock()
	if sb.hasSuperblock(group) {
		return sb.firstOf(group) + 1
	}
	return sb.firstOf(group)
}

// Structures returns the blocks of the file system's own structures, in order: the blocks before
// the first group, superblocks, descriptors and blocks reserved for them, bitmaps, and inode
// tables.
func (f *FileSystem) Structures() []Span {
	spans := make([]Span, 0, 4*len(f.groups)+1)
	if f.firstBlock > 0 {
		spans = append(spans, Span{0, uint64(f.firstBlock)})
	}
	for n, g := range f.groups {
		if head := f.head(uint64(n)); head > 0 {
			first := f.firstOf(uint64(n))
			spans = append(spans, Span{first, min(head, f.Blocks()-first)})
		}
		spans = append(spans, Span{g.BlockBitmap, 1}, Span{g.InodeBitmap, 1}, Span{g.InodeTable, f.tableBlocks()})
	}
	return Merge(spans)
}

// Merge sorts spans, and joins those that overlap or adjoin. It works in place.
func Merge(spans []Span) []Span {
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	merged := spans[:0]
	for _, s := range spans {
		if s.Length == 0 {
			continue
		}
		if last := len(merged) - 1; last >= 0 && s.Start <= merged[last].End() {
			merged[last].Length = max(merged[last].End(), s.End()) - merged[last].Start
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}
