package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

// errContradiction is matched if a file system has a state that no program can create.
var errContradiction = errors.New("the file system contradicts itself")

// compareStep is the number of bytes that are read of each side at a time.
const compareStep = 128 << 10

// comparison compares paths as sameFile of continuity's fs/path.go does.
type comparison struct {
	lower, upper string // the roots
	changed      []Range
	read         uint64 // bytes, of both sides
	buffers      [2][]byte
}

// same reports whether the walking differ would find a path unchanged. Mode, owner, device number
// and capabilities must be equal; and for other files than directories the size and time. If the
// time has no nanoseconds, they may have been cut off, so the content must be equal, too.
func (c *comparison) same(ctx context.Context, path string, lower, upper os.FileInfo) (bool, error) {
	if os.SameFile(lower, upper) { // both sides are the same mount
		return true, nil
	}
	a, okLower := lower.Sys().(*syscall.Stat_t)
	b, okUpper := upper.Sys().(*syscall.Stat_t)
	if !okLower || !okUpper || a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return false, nil
	}
	if same, err := c.sameCapabilities(path); err != nil || !same {
		return false, err
	}
	if upper.IsDir() {
		return true, nil
	}
	if lower.Size() != upper.Size() || a.Mtim.Sec != b.Mtim.Sec || a.Mtim.Nsec != b.Mtim.Nsec {
		return false, nil
	}
	switch {
	case a.Mtim.Nsec != 0:
		return true, nil
	case upper.Mode()&os.ModeSymlink != 0:
		return c.sameTarget(path)
	case upper.Size() == 0:
		return true, nil
	case !upper.Mode().IsRegular(): // opening a pipe would wait for a writer
		return false, fmt.Errorf("%w: %s is not a regular file, but has %d bytes", errContradiction, path, upper.Size())
	}
	return c.sameContent(ctx, path, uint64(upper.Size()))
}

func (c *comparison) sameCapabilities(path string) (bool, error) {
	const name = "security.capability"
	var values [2][]byte
	for i, root := range []string{c.lower, c.upper} {
		value, err := sysx.LGetxattr(root+path, name)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return false, fmt.Errorf("read %s of %s: %w", name, root+path, err)
		}
		values[i] = value
	}
	return bytes.Equal(values[0], values[1]), nil
}

func (c *comparison) sameTarget(path string) (bool, error) {
	lower, err := os.Readlink(c.lower + path)
	if err != nil {
		return false, err
	}
	upper, err := os.Readlink(c.upper + path)
	return lower == upper, err
}

// sameContent compares two files of the given size. It reads only their different blocks.
func (c *comparison) sameContent(ctx context.Context, path string, size uint64) (bool, error) {
	lower, err := os.Open(c.lower + path)
	if err != nil {
		return false, err
	}
	defer lower.Close()
	upper, err := os.Open(c.upper + path)
	if err != nil {
		return false, err
	}
	defer upper.Close()
	for part, err := range differing(lower, upper, size, c.changed) {
		if err != nil {
			return false, err
		}
		if same, err := c.samePart(ctx, lower, upper, part); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// samePart compares a part of two files.
func (c *comparison) samePart(ctx context.Context, lower, upper io.ReaderAt, p part) (bool, error) {
	for i := range c.buffers {
		if c.buffers[i] == nil {
			c.buffers[i] = make([]byte, compareStep)
		}
	}
	for at := p.offset; at < p.end; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n := min(p.end-at, compareStep)
		for i, file := range []io.ReaderAt{lower, upper} {
			if _, err := io.ReadFull(io.NewSectionReader(file, int64(at), int64(n)), c.buffers[i][:n]); err != nil {
				return false, err
			}
			c.read += n
		}
		if !bytes.Equal(c.buffers[0][:n], c.buffers[1][:n]) {
			return false, nil
		}
		at += n
	}
	return true, nil
}
