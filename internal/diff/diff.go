// Package diff lists what differs between two file systems, and writes it as an OCI layer. What it lists is what
// containerd's walking differ lists (continuity's fs.Changes), but it does not read files whose blocks are the same:
// the pool tells which blocks of two volumes differ.
//
// Both file systems are mounted read-only and do not change.
package diff

import (
	"context"
	"io"

	"github.com/containerd/continuity/fs"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

// Volume is one side of a comparison.
type Volume struct {
	Root       string      // the directory of a read-only mount, without a slash at its end
	Device     io.ReaderAt // what is mounted there
	Bytes      uint64      // the size of the device
	Filesystem string      // ext4 or xfs
}

// Range is a part of both devices that is not on the same blocks of the pool. What no range has is equal. A device
// reads as zeros where it is not mapped.
type Range struct {
	Offset, Length uint64 // in bytes
	Lower, Upper   bool   // whether the device is mapped there
}

// Change is a path that differs. ChangeKindUnmodified is a further name of a file that was added or modified under
// another name.
type Change struct {
	Kind fs.ChangeKind
	Path string // begins with a slash
}

// Level is a way to find changes.
type Level string

// Walk looks at each path of both file systems, and reads a file only where its blocks differ.
const Walk Level = "walk"

// Listing is the result of a comparison.
type Listing struct {
	// Changes are in the order of the walking differ: the entries of a directory by name, each followed by what is
	// below it. A directory that was deleted is one change.
	Changes []Change
	Level   Level
	// Fallback is why an ext4 was compared by a walk, and not by its inodes; else "".
	Fallback string
	Inodes   uint64 // that may have changed; 0 after a walk
	Paths    uint64 // that were looked at, on both sides
	Read     uint64 // bytes of files that were read to compare them, on both sides
}

// List lists what upper changes in lower; the zero Volume is an empty lower one. The ranges are in order, and do not
// overlap.
func List(ctx context.Context, lower, upper Volume, changed []Range) (Listing, error) {
	if lower.Filesystem != filesystem.Ext4 || upper.Filesystem != filesystem.Ext4 {
		return list(ctx, lower, upper, changed)
	}
	listing, why := listInodes(ctx, lower, upper, changed)
	if why == nil || ctx.Err() != nil {
		return listing, why
	}
	listing, err := list(ctx, lower, upper, changed)
	listing.Fallback = why.Error()
	return listing, err
}
