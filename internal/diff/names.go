package diff

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

const rootInode = 2

type entry struct {
	name  string
	inode uint32
	dir   bool
}

// entries lists a directory of a volume by name, without reading the inodes. The path of the root
// is "". The root may be a symbolic link, such as /proc/self/fd/N.
func (b *bounds) entries(root, dir string) ([]entry, error) {
	dir = root + cmp.Or(dir, "/.")
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	var list []entry
	buffer := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("list %s: %w", dir, err)
		case n == 0:
			slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.name, b.name) })
			return list, nil
		}
		known := len(list)
		list, err = parseEntries(list, buffer[:n])
		for _, e := range list[min(known, len(list)):] {
			err = cmp.Or(err, b.list(e.name))
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
	}
}

// parseEntries appends the entries in the result of getdents64(2): struct linux_dirent64.
func parseEntries(list []entry, raw []byte) ([]entry, error) {
	const nameOffset = 19
	for len(raw) > 0 {
		if len(raw) < nameOffset {
			return nil, fmt.Errorf("%w: an entry of %d bytes", errUnproved, len(raw))
		}
		length := int(binary.NativeEndian.Uint16(raw[16:]))
		if length < nameOffset || length > len(raw) {
			return nil, fmt.Errorf("%w: an entry of %d of %d bytes", errUnproved, length, len(raw))
		}
		name, _, _ := strings.Cut(string(raw[nameOffset:length]), "\x00")
		inode, typ := binary.NativeEndian.Uint64(raw), raw[18]
		raw = raw[length:]
		if name == "." || name == ".." {
			continue
		}
		if typ == unix.DT_UNKNOWN || inode == 0 || inode > math.MaxUint32 {
			return nil, fmt.Errorf("%w: the entry %q with inode %d and type %d", errUnproved, name, inode, typ)
		}
		list = append(list, entry{name: name, inode: uint32(inode), dir: typ == unix.DT_DIR})
	}
	return list, nil
}

// names is a search for the names of inodes.
type names struct {
	bounds

	root   string
	wanted map[uint32]struct{}
	// directories are the directories to list; nil for all.
	directories map[uint32]struct{}

	found map[uint32][]string
	// towards are the directories with a wanted inode in their trees.
	towards map[uint32]struct{}
	listed  uint64 // directories, in all searches
}

func (s *names) search(ctx context.Context) error {
	s.found, s.towards, s.bounds = map[uint32][]string{}, map[uint32]struct{}{}, bounds{most: s.most}
	if _, ok := s.wanted[rootInode]; ok {
		s.found[rootInode] = []string{""}
	}
	return s.below(ctx, "", []uint32{rootInode})
}

// below searches the directory dir. parents are the inodes from the root to dir, that of dir last.
func (s *names) below(ctx context.Context, dir string, parents []uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	s.listed++
	list, err := s.entries(s.root, dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		path := dir + "/" + e.name
		if _, ok := s.wanted[e.inode]; ok {
			if err := s.keep(path); err != nil {
				return err
			}
			s.found[e.inode] = append(s.found[e.inode], path)
			for _, p := range parents {
				s.towards[p] = struct{}{}
			}
		}
		if !e.dir {
			continue
		}
		if _, ok := s.directories[e.inode]; ok || s.directories == nil {
			if err := s.below(ctx, path, append(parents, e.inode)); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete reports whether each wanted inode was found as often as its record says. A directory has
// one name.
func (s *names) complete(fs *ext4.FileSystem) (bool, error) {
	for _, inode := range slices.Sorted(maps.Keys(s.wanted)) {
		r, err := fs.Record(inode)
		if err != nil {
			return false, err
		}
		count, links := len(s.found[inode]), int(r.Links())
		if r.Directory() {
			links = 1
		}
		switch {
		case count > links:
			return false, fmt.Errorf("%w: inode %d has %d links, but more names in directories", errUnproved, inode, links)
		case count < links:
			return false, nil
		}
	}
	return true, nil
}

// ancestors returns the directories among the inodes, and all their parents.
func ancestors(ctx context.Context, fs *ext4.FileSystem, inodes map[uint32]struct{}) (map[uint32]struct{}, error) {
	dirs := map[uint32]struct{}{rootInode: {}}
	for _, inode := range slices.Sorted(maps.Keys(inodes)) {
		r, err := fs.Record(inode)
		if err != nil {
			return nil, err
		}
		for known := !r.Directory(); !known; _, known = dirs[inode] {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			dirs[inode] = struct{}{}
			if inode, err = fs.Parent(r); err != nil {
				return nil, fmt.Errorf("parent of inode %d: %w", inode, err)
			}
			if r, err = fs.Record(inode); err != nil {
				return nil, err
			}
		}
	}
	return dirs, nil
}

const (
	// maxGuesses is the maximum number of inodes for which directories are guessed. For more
	// inodes, all directories are listed.
	maxGuesses = 64
	// nearInodes is the distance, in inode numbers, within which a guess looks. nearDirectories is
	// the number of directories that it takes.
	nearInodes, nearDirectories = 1024, 4
)

// addNearby adds the likely directories of inodes that were not found. The kernel assigns inode
// numbers of a group in order, and trees are mostly created with each directory before its entries.
// So the last directory before a file is probably its parent, or a child of its parent.
func (s *names) addNearby(ctx context.Context, fs *ext4.FileSystem) error {
	near, guesses := map[uint32]struct{}{}, 0
	for _, inode := range slices.Sorted(maps.Keys(s.wanted)) {
		if len(s.found[inode]) > 0 {
			continue
		}
		if guesses++; guesses > maxGuesses {
			return nil
		}
		last, taken := inode-min(inode-1, nearInodes), 0
		for inode--; inode > last && taken < nearDirectories; inode-- {
			r, err := fs.Record(inode)
			if err != nil {
				return err
			}
			if r.Directory() && r.Links() > 0 {
				near[inode] = struct{}{}
				taken++
			}
		}
	}
	dirs, err := ancestors(ctx, fs, near)
	if err != nil {
		return err
	}
	maps.Copy(s.directories, dirs)
	return nil
}
