// Package journal changes files of the machine together, and takes back what it changed. Before the first
// file is changed, a record says how to undo all of it. Each file is replaced atomically, so that after
// a crash each is as before or as planned.
package journal

import (
	"bytes"
	"io/fs"
)

// A File is a file to change. Its directory is created if it is missing.
type File struct {
	// Path is absolute. A symbolic link is followed.
	Path string
	// Before is what the file has, nil if there is none.
	Before []byte
	// After is what the file gets. Undo makes a File whose After is nil, to remove it.
	After []byte
	// Mode is that of a created file, 0644 if it is 0. A file that exists keeps its own, without the
	// permissions that a Mode other than 0 lacks.
	Mode fs.FileMode
}

// Unchanged returns true if the file has what it should have.
func (f File) Unchanged() bool {
	return f.Before != nil && f.After != nil && bytes.Equal(f.Before, f.After)
}
