package pool

import "math/bits"

// MaxMetadataBytes is the most that the kernel uses of a metadata device
// (drivers/md/dm-thin-metadata.h: THIN_METADATA_MAX_SECTORS).
const MaxMetadataBytes = 255 * (1<<14 - 64) * MetadataBlockBytes

// Growth configures when a pool's devices are extended automatically, and by how much.
type Growth struct {
	// Threshold is the usage of a device in percent at which it is extended: 1 to 99, or 100 for
	// never.
	Threshold uint64
	// Percent is the extension in percent of the device's size, at least one block.
	Percent uint64
	// DataStep is the least extension of the data device, in bytes.
	DataStep uint64
	// DataLimit is the largest size, in bytes, to which the data device is extended automatically;
	// 0 means no limit.
	DataLimit uint64
}

// Short reports whether a device of whole blocks has reached the threshold. For data, the kernel
// raises its event at the same usage.
func (g Growth) Short(s Space, blockBytes uint64) bool {
	return g.Threshold < 100 && s.Total-min(s.Used, s.Total) <= percentOf(s.Total/blockBytes, 100-g.Threshold)*blockBytes
}

// Next returns the size, in bytes, to which a device of whole blocks should be extended: by at
// least step, up to largest, and never less than its present size.
func (g Growth) Next(s Space, blockBytes, step, largest uint64) uint64 {
	next := s.Total + max(percentOf(s.Total, g.Percent), step, 1)
	next = (next + blockBytes - 1) / blockBytes * blockBytes
	return max(min(next, largest)/blockBytes*blockBytes, s.Total)
}

// percentOf returns the given percentage of total, rounded up.
func percentOf(total, percent uint64) uint64 {
	high, low := bits.Mul64(total, percent)
	low, carry := bits.Add64(low, 99, 0)
	quotient, _ := bits.Div64(high+carry, low, 100)
	return quotient
}
