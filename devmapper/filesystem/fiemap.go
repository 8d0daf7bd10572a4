package filesystem

import (
	"fmt"
	"iter"
	"os"
)

// Flags of an extent, FIEMAP_EXTENT_* in include/uapi/linux/fiemap.h.
const (
	fiemapLast      = 0x1   // no extent follows
	fiemapUnwritten = 0x800 // reads as zeros
	// fiemapOpaque is UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE and
	// DATA_TAIL: the bytes at the physical location are not, or not alone, the file's content.
	fiemapOpaque = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
)

// Extent is an allocated part of a file.
type Extent struct {
	Logical  uint64 // offset in the file, in bytes
	Physical uint64 // offset on the device of the file system, in bytes; meaningless if opaque
	Length   uint64 // in bytes, at least one
	// Unwritten is true if the extent is allocated, but reads as zeros.
	Unwritten bool
	// Opaque is true if the file's content does not follow from the bytes at Physical.
	Opaque bool
}

// End returns the offset in the file after the extent, in bytes.
func (e Extent) End() uint64 { return e.Logical + e.Length }

// Extents yields the extents of a regular file that overlap the first size bytes, in order
// (FIEMAP). Gaps between them are holes. The result is meaningless if the file changes meanwhile.
// An error ends the sequence; it is unix.EOPNOTSUPP if the file system cannot list extents.
func Extents(file *os.File, size uint64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var request fiemap
		for at := uint64(0); at < size; {
			request = fiemap{start: at, length: size - at, count: uint32(len(request.extents))}
			if err := listExtents(file, &request); err != nil {
				yield(Extent{}, fmt.Errorf("list the extents of %s: %w", file.Name(), err))
				return
			}
			if request.mapped == 0 {
				return
			}
			for _, e := range request.extents[:min(int(request.mapped), len(request.extents))] {
				if e.length == 0 || e.logical+e.length <= at || (e.logical < at && at > 0) {
					yield(Extent{}, fmt.Errorf("list the extents of %s: an extent of %d bytes at %d after one that ends at %d",
						file.Name(), e.length, e.logical, at))
					return
				}
				extent := Extent{
					Logical: e.logical, Physical: e.physical, Length: e.length,
					Unwritten: e.flags&fiemapUnwritten != 0, Opaque: e.flags&fiemapOpaque != 0,
				}
				if !yield(extent, nil) || e.flags&fiemapLast != 0 {
					return
				}
				at = extent.End()
			}
		}
	}
}
