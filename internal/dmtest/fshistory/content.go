package fshistory

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func contentOperations() []operation {
	return []operation{
		{name: "create", weight: 14, image: 3, choose: newPath(file), apply: (*Run).create},
		{name: "create unnamed, link", weight: 2, choose: newPath(file), apply: (*Run).createUnnamed},
		{name: "create sparse", weight: 1, image: 1, choose: newPath(file), apply: (*Run).createSparse},
		{name: "append", weight: 6, choose: change(file), apply: (*Run).appendTo},
		{name: "overwrite", weight: 6, choose: change(file), apply: (*Run).overwrite},
		{name: "overwrite, keep times", weight: 6, choose: change(file), apply: (*Run).overwriteQuietly},
		{name: "overwrite with the same", weight: 3, choose: change(file), apply: (*Run).overwriteSame},
		{name: "overwrite directly", weight: 2, choose: change(file), apply: (*Run).overwriteDirectly},
		{name: "write zeros, keep times", weight: 2, choose: change(file), apply: (*Run).zerosQuietly},
		{name: "map", weight: 4, choose: change(file), apply: (*Run).mapped},
		{name: "map, hold", weight: 2, choose: change(file), apply: (*Run).mappedHeld},
		{name: "map, keep times", weight: 2, choose: change(file), apply: (*Run).mappedQuietly},
		{name: "truncate", weight: 4, choose: change(file), apply: (*Run).truncate},
		{name: "truncate and back, keep times", weight: 2, choose: change(file), apply: (*Run).truncateAndBack},
		{name: "write again", weight: 3, choose: change(file), apply: (*Run).writeAgain},
		{name: "replace", weight: 4, choose: change(file), apply: (*Run).replace},
		{name: "replace, keep times", weight: 3, choose: change(file), apply: (*Run).replaceQuietly},
		{name: "use inode again", weight: 4, choose: chooseMove(1, file), apply: (*Run).useInodeAgain},
		{name: "swap contents, keep times", weight: 2, choose: choosePair, apply: (*Run).swapQuietly},
		{name: "read", weight: 3, choose: change(file), apply: (*Run).read},
		{name: "list", weight: 1, choose: change(dir, crowd), apply: (*Run).list},
		{name: "fsync", weight: 2, choose: change(file, dir), apply: (*Run).fsync},
		{name: "sync", weight: 1, choose: change(file, dir), apply: (*Run).sync},
		{name: "clone", weight: 4, filesystem: "xfs", choose: choosePair, apply: (*Run).clone},
		{name: "deduplicate", weight: 3, filesystem: "xfs", choose: choosePair, apply: (*Run).deduplicate},
	}
}

// length returns the length of a file or of a part in bytes. Many lengths fit into an inode or a
// block.
func (g *Generator) length() int64 {
	switch n := g.rand.IntN(20); {
	case n < 2:
		return 0
	case n < 6:
		return 1 + g.rand.Int64N(150)
	case n < 12:
		return 1 + g.rand.Int64N(8*kib)
	case n < 14:
		return 4 * kib * (1 + g.rand.Int64N(8))
	case n < 19:
		return 1 + g.rand.Int64N(100*kib)
	}
	return 1 + g.rand.Int64N(mib)
}

func (g *Generator) offset() int64 {
	switch g.rand.IntN(4) {
	case 0:
		return 0
	case 1:
		return 4 * kib * g.rand.Int64N(16)
	}
	return g.rand.Int64N(70 * kib)
}

func choosePair(g *Generator) (Op, bool) {
	p, ok := g.pick(file)
	to, _ := g.pick(file)
	return g.values(Op{Path: p, To: to}), ok && p != to
}

func (r *Run) create(o Op) error {
	return r.onFile(o.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, func(f *os.File, _ int64) error {
		_, err := f.Write(content(o.Value, o.Length))
		return err
	})
}

func (r *Run) createUnnamed(o Op) error {
	return r.onFile(path.Dir(o.Path), os.O_WRONLY|unix.O_TMPFILE, func(f *os.File, _ int64) error {
		if _, err := f.Write(content(o.Value, o.Length)); err != nil {
			return err
		}
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, r.path(o.Path),
			unix.AT_SYMLINK_FOLLOW)
	})
}

func (r *Run) createSparse(o Op) error {
	return r.onFile(o.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, func(f *os.File, _ int64) error {
		for i := range int64(4) {
			if _, err := f.WriteAt(content(o.Value+uint64(i), 100+o.At%5000), i*o.Length+o.At); err != nil {
				return err
			}
		}
		return f.Truncate(4*o.Length + 2*mib)
	})
}

func (r *Run) appendTo(o Op) error {
	return r.onFile(o.Path, os.O_WRONLY|os.O_APPEND, func(f *os.File, _ int64) error {
		_, err := f.Write(content(o.Value, o.Length))
		return err
	})
}

// within limits the part of an operation by the size of the file.
func within(o Op, size int64) (at, length int64) {
	if size == 0 {
		return 0, 0
	}
	at = o.At % size
	return at, min(o.Length, size-at)
}

// inPlace overwrites a part of a file with the bytes that of() returns. The size of the file does
// not change.
func (r *Run) inPlace(o Op, of func(f *os.File, at, length int64) ([]byte, error)) error {
	return r.onFile(o.Path, os.O_RDWR, func(f *os.File, size int64) error {
		at, length := within(o, size)
		b, err := of(f, at, length)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(b, at)
		return err
	})
}

func (r *Run) overwrite(o Op) error {
	return r.inPlace(o, func(_ *os.File, _, length int64) ([]byte, error) { return content(o.Value, length), nil })
}

func (r *Run) overwriteQuietly(o Op) error {
	return r.keepingTimes(o.Path, func() error { return r.overwrite(o) })
}

func (r *Run) zerosQuietly(o Op) error {
	o.Value = 0
	return r.overwriteQuietly(o)
}

func (r *Run) overwriteSame(o Op) error {
	same := func() error {
		return r.inPlace(o, func(f *os.File, at, length int64) ([]byte, error) {
			b := make([]byte, length)
			_, err := f.ReadAt(b, at)
			return b, err
		})
	}
	if o.Value%2 == 0 {
		return same()
	}
	return r.keepingTimes(o.Path, same)
}

// overwriteDirectly writes whole blocks past the page cache.
func (r *Run) overwriteDirectly(o Op) error {
	return r.onFile(o.Path, os.O_RDWR|unix.O_DIRECT, func(f *os.File, _ int64) error {
		b, err := unix.Mmap(-1, 0, 8*kib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		copy(b, content(o.Value, 8*kib))
		_, err = f.WriteAt(b, o.At&^(4*kib-1))
		return errors.Join(err, unix.Munmap(b))
	})
}

// mapping changes a part of a file through a mapping. The caller unmaps it.
func (r *Run) mapping(o Op) (m []byte, err error) {
	err = r.onFile(o.Path, os.O_RDWR, func(f *os.File, size int64) error {
		if size == 0 {
			return unix.ENODATA
		}
		if m, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return err
		}
		r.held = append(r.held, func() error { return unix.Munmap(m) })
		at, length := within(o, size)
		copy(m[at:], content(o.Value, length))
		return nil
	})
	return m, err
}

func (r *Run) mappedHeld(o Op) error {
	_, err := r.mapping(o)
	return err
}

func (r *Run) mapped(o Op) error {
	m, err := r.mapping(o)
	if err != nil {
		return err
	}
	r.held = r.held[:len(r.held)-1]
	return unix.Munmap(m)
}

func (r *Run) mappedQuietly(o Op) error {
	return r.keepingTimes(o.Path, func() error { return r.mapped(o) })
}

func (r *Run) truncate(o Op) error {
	return r.onFile(o.Path, os.O_WRONLY, func(f *os.File, _ int64) error { return f.Truncate(o.Length) })
}

// truncateAndBack leaves zeros in place of data.
func (r *Run) truncateAndBack(o Op) error {
	return r.keepingTimes(o.Path, func() error {
		return r.onFile(o.Path, os.O_WRONLY, func(f *os.File, size int64) error {
			return errors.Join(f.Truncate(size/2), f.Truncate(size))
		})
	})
}

func (r *Run) writeAgain(o Op) error {
	return r.onFile(o.Path, os.O_WRONLY, func(f *os.File, size int64) error {
		if err := f.Truncate(0); err != nil {
			return err
		}
		_, err := f.Write(content(o.Value, size))
		return err
	})
}

const temporary = ".replaced"

func (r *Run) replace(o Op) error {
	var size int64
	if err := r.onFile(o.Path, os.O_RDONLY, func(_ *os.File, n int64) error { size = n; return nil }); err != nil {
		return err
	}
	if err := r.create(Op{Path: temporary, Length: size, Value: o.Value}); err != nil {
		_ = os.Remove(r.path(temporary))
		return err
	}
	return unix.Rename(r.path(temporary), r.path(o.Path))
}

func (r *Run) replaceQuietly(o Op) error {
	return r.keepingTimes(o.Path, func() error { return r.replace(o) })
}

// useInodeAgain replaces a file by one with another name and the same size and times, which mostly
// gets the same inode number.
func (r *Run) useInodeAgain(o Op) error {
	var st unix.Stat_t
	if err := unix.Lstat(r.path(o.Path), &st); err != nil {
		return err
	}
	if err := unix.Unlink(r.path(o.Path)); err != nil {
		return err
	}
	if err := r.create(Op{Path: o.To, Length: st.Size, Value: st.Ino}); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, r.path(o.To), []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (r *Run) swapQuietly(o Op) error {
	return r.keepingTimes(o.Path, func() error {
		return r.keepingTimes(o.To, func() error {
			return r.onFile(o.Path, os.O_RDWR, func(a *os.File, _ int64) error {
				return r.onFile(o.To, os.O_RDWR, func(b *os.File, _ int64) error { return swap(a, b) })
			})
		})
	})
}

func swap(a, b *os.File) error {
	of := func(f *os.File) ([]byte, error) { return io.ReadAll(io.LimitReader(f, 8*mib)) }
	inA, errA := of(a)
	inB, errB := of(b)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	n := min(len(inA), len(inB))
	_, errA = a.WriteAt(inB[:n], 0)
	_, errB = b.WriteAt(inA[:n], 0)
	return errors.Join(errA, errB)
}

func (r *Run) read(o Op) error {
	return r.onFile(o.Path, os.O_RDONLY, func(f *os.File, _ int64) error {
		_, err := io.Copy(io.Discard, io.LimitReader(f, mib))
		return err
	})
}

func (r *Run) list(o Op) error {
	return r.onFile(o.Path, os.O_RDONLY, func(f *os.File, _ int64) error {
		_, err := f.Readdirnames(-1)
		return err
	})
}

func (r *Run) fsync(o Op) error {
	return r.onFile(o.Path, os.O_RDONLY, func(f *os.File, _ int64) error { return f.Sync() })
}

func (r *Run) sync(o Op) error {
	return r.onFile(o.Path, os.O_RDONLY, func(f *os.File, _ int64) error { return unix.Syncfs(int(f.Fd())) })
}

func (r *Run) clone(o Op) error {
	return r.onFile(o.Path, os.O_RDONLY, func(from *os.File, _ int64) error {
		return r.onFile(o.To, os.O_RDWR, func(to *os.File, _ int64) error {
			return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
		})
	})
}

// deduplicate makes a file share the blocks of another one. Its times do not change.
func (r *Run) deduplicate(o Op) error {
	return r.keepingTimes(o.To, func() error {
		return r.onFile(o.Path, os.O_RDONLY, func(from *os.File, size int64) error {
			return r.onFile(o.To, os.O_RDWR, func(to *os.File, _ int64) error {
				b := make([]byte, min(size, 8*mib))
				if _, err := from.ReadAt(b, 0); err != nil {
					return err
				}
				if _, err := to.WriteAt(b, 0); err != nil {
					return err
				}
				return unix.IoctlFileDedupeRange(int(from.Fd()), &unix.FileDedupeRange{
					Src_length: uint64(len(b)) &^ (4*kib - 1),
					Info:       []unix.FileDedupeRangeInfo{{Dest_fd: int64(to.Fd())}},
				})
			})
		})
	})
}
