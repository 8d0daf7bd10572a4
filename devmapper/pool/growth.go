package pool

import "math/bits"

// MaxMetadataBytes is as much of a metadata device as the kernel uses
// (drivers/md/dm-thin-metadata.h: THIN_METADATA_MAX_SECTORS).
const MaxMetadataBytes = 255 * (1<<14 - 64) * MetadataBlockBytes

// Growth says when a pool's devices grow by themselves, and by how much.
type Growth struct {
	// Threshold is how many percent of a device may be in use before it grows: 1 to
	// 99, or 100 for a device that never does.
	Threshold uint64
	// Percent of its size is by how much a device grows, at least by one block.
	Percent uint64
	// DataLimit is how large the data device may become by itself, in bytes; 0 for as
	// large as what it lies on allows.
	DataLimit uint64
}

// Short tells whether so little of a device of whole blocks is left that it should
// grow. For the data that is so where the kernel raises its event.
func (g Growth) Short(s Space, blockBytes uint64) bool {
	return g.Threshold < 100 && s.Total-min(s.Used, s.Total) <= percentOf(s.Total/blockBytes, 100-g.Threshold)*blockBytes
}

// Next returns how large, in bytes, a device of whole blocks should become that is
// short of space: its present size if it cannot be larger than that.
func (g Growth) Next(s Space, blockBytes, largest uint64) uint64 {
	next := s.Total + max(percentOf(s.Total, g.Percent), 1)
	next = (next + blockBytes - 1) / blockBytes * blockBytes
	return max(min(next, largest)/blockBytes*blockBytes, s.Total)
}

// percentOf is so many percent of total, rounded up.
func percentOf(total, percent uint64) uint64 {
	high, low := bits.Mul64(total, percent)
	low, carry := bits.Add64(low, 99, 0)
	quotient, _ := bits.Div64(high+carry, low, 100)
	return quotient
}
