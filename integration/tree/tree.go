// Package tree describes all properties of a tree of files, and compares two such descriptions. It shows whether two
// snapshotters make the same root file system of the same image.
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
	// Size is in bytes; 0 for a directory, whose size depends on the file system.
	Size    int64
	ModTime time.Time
	// Device is st_rdev of a device node, else 0.
	Device uint64
	// Target of a symbolic link.
	Target string
	// Digest is the CRC-64 (ECMA-182) of a regular file's content.
	Digest string
	// Xattrs has all extended attributes that the reader may see; for root, also those of "trusted.".
	Xattrs map[string]string
	// Links has the other names of the same inode in the tree, sorted; nil if it has none.
	Links []string
	// Sparse: a regular file has holes, according to its block count.
	Sparse bool
}

// Tree maps paths, relative to the root, to their entries. The root's path is ".".
type Tree map[string]Entry

// Walk reads the tree at root, without entering other file systems mounted in it. It does not follow links.
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
	inodes map[uint64][]string // names of each inode that is not a directory
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
		// st_blocks counts 512 bytes, independent of the file system's block size (stat(2)).
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

// digest uses CRC-64, which detects accidental changes: SHA-256 takes ten times as long on an emulated processor.
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

// xattrs returns nil for a file without attributes, and on a file system without support for them.
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

// read calls a function that returns the required size of its buffer if it gets none.
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
