package blockdev

import (
	"fmt"
	"os"
)

// Hole is a part of a file without space on its disk.
type Hole struct{ Offset, Length int64 }

// holeBatch is the number of extents that one call reads.
const holeBatch = 512

// fiemap is the argument of FS_IOC_FIEMAP (linux/fiemap.h: struct fiemap and fiemap_extent).
type fiemap struct {
	start, length   uint64
	flags, mapped   uint32
	count, reserved uint32
	extents         [holeBatch]fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	reserved64                [2]uint64
	flags                     uint32
	reserved                  [3]uint32
}

const (
	// fsIocFiemap is FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap) of linux/fs.h.
	fsIocFiemap = 0xc020660b
	// fiemapLast is FIEMAP_EXTENT_LAST.
	fiemapLast = 1
)

// Holes returns the holes in the first length bytes of a file, in order. An allocated part that was
// not written yet is not a hole. It returns EOPNOTSUPP if the file system cannot list them.
func Holes(f *os.File, length int64) ([]Hole, error) {
	var holes []Hole
	arg := new(fiemap)
	for at := int64(0); at < length; {
		*arg = fiemap{start: uint64(at), length: uint64(length - at), count: holeBatch}
		if err := readExtents(f, arg); err != nil {
			return nil, fmt.Errorf("read the extents of %s: %w", f.Name(), err)
		}
		last := arg.mapped < holeBatch
		for _, e := range arg.extents[:min(arg.mapped, holeBatch)] {
			if begin := min(int64(e.logical), length); begin > at {
				holes = append(holes, Hole{at, begin - at})
			}
			at = max(at, int64(e.logical+e.length))
			last = last || e.flags&fiemapLast != 0
		}
		if last && at < length {
			return append(holes, Hole{at, length - at}), nil
		}
	}
	return holes, nil
}
