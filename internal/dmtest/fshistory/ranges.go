package fshistory

import (
	"os"

	"golang.org/x/sys/unix"
)

func rangeOperations() []operation {
	const (
		keep     = unix.FALLOC_FL_KEEP_SIZE
		punch    = unix.FALLOC_FL_PUNCH_HOLE | keep
		zero     = unix.FALLOC_FL_ZERO_RANGE
		collapse = unix.FALLOC_FL_COLLAPSE_RANGE
		insert   = unix.FALLOC_FL_INSERT_RANGE
	)
	of := func(name string, weight int, apply func(*Run, Op) error) operation {
		return operation{name: name, weight: weight, choose: change(file), apply: apply}
	}
	return []operation{
		of("punch a hole", 3, fallocate(punch, 0, false)),
		of("punch a hole, keep times", 3, fallocate(punch, 0, true)),
		of("zero a range", 2, fallocate(zero, 0, false)),
		of("zero a range, keep times", 2, fallocate(zero|keep, 0, true)),
		of("collapse a range", 2, fallocate(collapse, 4*kib, false)),
		of("insert a range", 2, fallocate(insert, 4*kib, false)),
		of("allocate", 2, fallocate(0, 0, false)),
		of("allocate, keep size and times", 2, fallocate(keep, 0, true)),
	}
}

// fallocate applies a mode of fallocate(2). Some modes need whole blocks. The range begins inside
// of the file.
func fallocate(mode uint32, block int64, quietly bool) func(*Run, Op) error {
	return func(r *Run, o Op) error {
		change := func() error {
			return r.onFile(o.Path, os.O_RDWR, func(f *os.File, size int64) error {
				at, length := o.At%(size+1), o.Length
				if block != 0 {
					at, length = at&^(block-1), max(block, length&^(block-1))
				}
				return unix.Fallocate(int(f.Fd()), mode, at, max(length, 1))
			})
		}
		if !quietly {
			return change()
		}
		return r.keepingTimes(o.Path, change)
	}
}
