package diff

import (
	"errors"
	"iter"
	"os"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

type part struct{ offset, end uint64 }

// differing yields the parts of two files of the same size whose bytes can differ. It skips parts
// that are zeros in both files, or on an equal range of the devices.
func differing(lower, upper *os.File, size uint64, changed []Range) iter.Seq2[part, error] {
	return func(yield func(part, error) bool) {
		a, b := newCursor(lower, size), newCursor(upper, size)
		defer a.stop()
		defer b.stop()
		for at := uint64(0); at < size; {
			l, err := a.at(at)
			if err != nil {
				yield(part{}, err)
				return
			}
			u, err := b.at(at)
			if err != nil {
				yield(part{}, err)
				return
			}
			end := min(l.end, u.end, size)
			switch {
			case l.kind == zeros && u.kind == zeros:
			case l.kind == data && u.kind == data && l.physical == u.physical:
				for p := range changedIn(changed, l.physical, end-at) {
					if !yield(part{at + p.offset - l.physical, at + p.end - l.physical}, nil) {
						return
					}
				}
			default:
				if !yield(part{at, end}, nil) {
					return
				}
			}
			at = end
		}
	}
}

// changedIn yields the intersections of a piece of the devices with the changed ranges.
func changedIn(changed []Range, offset, length uint64) iter.Seq[part] {
	return func(yield func(part) bool) {
		end := offset + length
		first := sort.Search(len(changed), func(i int) bool { return changed[i].Offset+changed[i].Length > offset })
		for _, r := range changed[first:] {
			if r.Offset >= end || !yield(part{max(offset, r.Offset), min(end, r.Offset+r.Length)}) {
				return
			}
		}
	}
}

type kind int

const (
	opaque kind = iota // unknown content
	zeros              // reads as zeros
	data               // content on the device
)

// piece is a piece of a file, from the offset that the caller passed.
type piece struct {
	kind     kind
	physical uint64 // of data: the offset on the device
	end      uint64 // the offset in the file after it
}

// cursor iterates once over the extents of a file.
type cursor struct {
	next    func() (filesystem.Extent, error, bool)
	stop    func()
	size    uint64
	current filesystem.Extent
	ended   bool // there is no extent after current
}

func newCursor(file *os.File, size uint64) *cursor {
	c := &cursor{size: size}
	c.next, c.stop = iter.Pull2(filesystem.Extents(file, size))
	return c
}

// at returns the piece at an offset below the size. Offsets must not decrease from call to call.
func (c *cursor) at(offset uint64) (piece, error) {
	for !c.ended && c.current.End() <= offset {
		extent, err, ok := c.next()
		switch {
		case errors.Is(err, unix.EOPNOTSUPP):
			extent = filesystem.Extent{Length: c.size, Opaque: true}
		case err != nil:
			return piece{}, err
		case !ok:
			c.ended = true
			continue
		}
		c.current = extent
	}
	e := c.current
	switch {
	case offset >= e.End():
		return piece{kind: zeros, end: c.size}, nil
	case offset < e.Logical:
		return piece{kind: zeros, end: e.Logical}, nil
	case e.Opaque:
		return piece{kind: opaque, end: e.End()}, nil
	case e.Unwritten:
		return piece{kind: zeros, end: e.End()}, nil
	}
	return piece{kind: data, physical: e.Physical + offset - e.Logical, end: e.End()}, nil
}
