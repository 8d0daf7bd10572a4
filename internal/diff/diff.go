// Package diff lists the differences between two file systems, and writes them as an OCI layer. The
// list equals that of containerd's walking differ (continuity's fs.Changes). But files on the same
// blocks are not read: the pool knows the blocks in which two volumes differ.
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
	Root       string      // the directory of a read-only mount, without a trailing slash
	Device     io.ReaderAt // the mounted device
	Bytes      uint64      // the size of the device
	Filesystem string      // ext4 or xfs
}

// Range is a part of both devices that is not on the same blocks of the pool. The devices are equal
// outside all ranges. Unmapped parts read as zeros.
type Range struct {
	Offset, Length uint64 // in bytes
	Lower, Upper   bool   // whether the device is mapped there
}

// Change is a path that differs. ChangeKindUnmodified marks a further name of a file that was added
// or modified under another name.
type Change struct {
	Kind fs.ChangeKind
	Path string // begins with a slash
}

// Level is a method of finding changes.
type Level string

// Walk compares each path of both file systems, and reads only the different blocks of a file.
const Walk Level = "walk"

// Listing is the result of a comparison.
type Listing struct {
	// Changes are in the order of the walking differ: the entries of a directory by name, each
	// followed by its own entries. A deleted directory is one change.
	Changes []Change
	Level   Level
	// Fallback is the reason why an ext4 was compared by a walk; "" otherwise.
	Fallback string
	Inodes   uint64 // that may have changed; 0 after a walk
	Paths    uint64 // compared on both sides
	Read     uint64 // bytes of file content that were compared, on both sides
}

// List lists the changes from lower to upper. The zero Volume is an empty lower side. The ranges
// are sorted, and do not overlap.
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
