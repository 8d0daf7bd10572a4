package diff

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// maxHeld bounds the memory for the names of directories and for paths, in bytes.
	maxHeld = 128 << 20
	// entryBytes is the size of a list entry without its name.
	entryBytes = 64
)

// errTooMuch is matched if a file system exceeds the bounds of a comparison.
var errTooMuch = errors.New("too much to compare")

// bounds limit the memory and the time for a tree of directories. A program in a container can make
// the tree as large as its disk, and a virtual machine can make a graph with endless paths.
type bounds struct {
	kept, lists uint64 // bytes of paths, and of the lists of open directories
	directories uint64 // listed ones
	most        uint64 // the maximum of directories; 0 for no limit
}

// newBounds returns the bounds for a file system, which has at most as many directories as inodes.
func newBounds(root string) (bounds, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root+"/.", &st); err != nil {
		return bounds{}, fmt.Errorf("look for the number of inodes below %s: %w", root, err)
	}
	return bounds{most: st.Files}, nil
}

// enter counts a directory. Its entries count until leave is called.
func (b *bounds) enter() (leave func(), err error) {
	if b.directories++; b.most > 0 && b.directories > b.most {
		return nil, fmt.Errorf("%w: it has paths to more directories than the %d that can exist", errTooMuch, b.most)
	}
	before := b.lists
	return func() { b.lists = before }, nil
}

// list counts an entry of a directory.
func (b *bounds) list(name string) error {
	b.lists += uint64(len(name)) + entryBytes
	return b.check()
}

// keep counts a path.
func (b *bounds) keep(path string) error {
	b.kept += uint64(len(path)) + entryBytes
	return b.check()
}

func (b *bounds) check() error {
	if b.kept+b.lists > maxHeld {
		return fmt.Errorf("%w: its paths take more than %d MiB of memory", errTooMuch, maxHeld>>20)
	}
	return nil
}
