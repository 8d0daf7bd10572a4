// Package journal changes several files of the machine together, and can undo the changes. Before
// the first change, a record is written that describes how to undo all of them. Each file is
// replaced atomically: after a crash, it has its old or its planned content.
package journal

import (
	"bytes"
	"io/fs"
)

// A File is a file to change. Its directory is created if it is missing.
type File struct {
	// Path may be relative. A symbolic link is followed.
	Path string
	// Before is the file's present content, nil if there is no file.
	Before []byte
	// After is the file's new content. Undo returns a File with a nil After to remove it.
	After []byte
	// Mode is the mode of a created file, 0644 if it is 0. An existing file keeps its mode, without
	// the permissions that a Mode other than 0 lacks.
	Mode fs.FileMode
}

// Unchanged reports whether the file already has its new content.
func (f File) Unchanged() bool {
	return f.Before != nil && f.After != nil && bytes.Equal(f.Before, f.After)
}
