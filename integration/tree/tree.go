// Package tree describes everything that a file system can say about a tree of files, and compares
// two such descriptions. It tells whether two snapshotters make the same root file system of the
// same image.
package tree

import (
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is one name in a tree.
type Entry struct {
	// Mode is st_mode: the type and the twelve permission bits.
	Mode uint32
	UID  uint32
	GID  uint32
	// Size is in bytes; 0 for a directory, whose size says more of the file system than of the
	// directory.
	Size    int64
	ModTime time.Time
	// Device is st_rdev of a device node, else 0.
	Device uint64
	// Target of a symbolic link.
	Target string
	// Digest is the CRC-64 (ECMA-182) of a regular file's content.
	Digest string
	// Xattrs holds every extended attribute that the reader may see: a walk by root also those of
	// "trusted.".
	Xattrs map[string]string
	// Links holds the other names of the same inode in the tree, sorted; nil if there are none.
	Links []string
	// Sparse says that a regular file has holes, as far as its block count tells.
	Sparse bool
}

// Tree maps paths, relative to the root, which is ".", to what is there.
type Tree map[string]Entry

// Walk reads the tree at root, without crossing into other file systems that are mounted in it. It
// follows no links.
func Walk(root string) (Tree, error) {
	w := walker{root: root, tree: make(Tree), inodes: make(map[uint64][]string)}
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return nil, fmt.Errorf("walk %s: %w", root, err)
	}
	w.device = top.Dev
	if err := filepath.WalkDir(root, w.visit); err != nil {
		return nil, fmt.Errorf("walk %s: %w", root, err)
	}
	w.link()
	return w.tree, nil
}

type walker struct {
	root   string
	device uint64
	tree   Tree
	inodes map[uint64][]string // the names of each inode that is no directory
}

func (w *walker) visit(path string, _ fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	name, err := filepath.Rel(w.root, path)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	directory := st.Mode&unix.S_IFMT == unix.S_IFDIR
	// Overlay file systems may report other device numbers for files than for directories.
	if directory && st.Dev != w.device {
		return fs.SkipDir
	}
	entry, err := describe(path, &st)
	if err != nil {
		return err
	}
	w.tree[name] = entry
	if !directory {
		w.inodes[st.Ino] = append(w.inodes[st.Ino], name)
	}
	return nil
}

// link fills Links, once all names are known.
func (w *walker) link() {
	for _, names := range w.inodes {
		if len(names) < 2 {
			continue
		}
		sort.Strings(names)
		for _, name := range names {
			entry := w.tree[name]
			for _, other := range names {
				if other != name {
					entry.Links = append(entry.Links, other)
				}
			}
			w.tree[name] = entry
		}
	}
}

func describe(path string, st *unix.Stat_t) (Entry, error) {
	entry := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix())}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		entry.Size = st.Size
		// st_blocks counts 512 bytes whatever the file system's own blocks are (stat(2)).
		entry.Sparse = st.Blocks*512 < st.Size
		if entry.Digest, err = digest(path); err != nil {
			return entry, err
		}
	case unix.S_IFLNK:
		entry.Size = st.Size
		if entry.Target, err = os.Readlink(path); err != nil {
			return entry, err
		}
	case unix.S_IFBLK, unix.S_IFCHR:
		entry.Device = st.Rdev
	}
	entry.Xattrs, err = xattrs(path)
	return entry, err
}

// digest finds an accident, not a forger: SHA-256 takes ten times as long on an emulated processor.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := crc64.New(crc64.MakeTable(crc64.ECMA))
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return fmt.Sprintf("%016x", h.Sum64()), nil
}

// xattrs returns nil for a file that has none and for a file system that knows none.
func xattrs(path string) (map[string]string, error) {
	list, err := read(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.ENOTSUP) || (err == nil && len(list) == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the extended attributes of %s: %w", path, err)
	}
	values := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		value, err := read(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
		if err != nil {
			return nil, fmt.Errorf("read attribute %s of %s: %w", name, path, err)
		}
		values[name] = value
	}
	return values, nil
}

// read calls a function that, given no buffer, says how large it has to be.
func read(call func([]byte) (int, error)) (string, error) {
	size, err := call(nil)
	if err != nil || size == 0 {
		return "", err
	}
	buf := make([]byte, size)
	if size, err = call(buf); err != nil {
		return "", err
	}
	return string(buf[:size]), nil
}
