package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const version = 1

// A Record lists the changes, in a file of its own. Open returns one.
type Record struct {
	path    string
	entries []entry
}

// An entry describes how to undo the changes of one file.
type entry struct {
	Path string `json:"path"`
	// Created is true for a file that did not exist before.
	Created bool `json:"created"`
	// Directories were created for the file, the deepest last.
	Directories []string `json:"directories,omitempty"`
	// Backup is the path of a copy from before the first hunk.
	Backup string `json:"backup,omitempty"`
	// Written has the SHA-256 of all contents that were written to the file, except of those with
	// edits by others in a created file. After a crash the file may have any of them, or none.
	Written []string `json:"sha256"`
	// Hunks are the changes of a file that existed before, in order.
	Hunks []Hunk `json:"hunks,omitempty"`
}

type document struct {
	Version int     `json:"version"`
	Files   []entry `json:"files"`
}

// Open reads a record, or returns an empty one if the file is missing. It fails with
// errdefs.ErrFailedPrecondition for a file that is not a record, with errdefs.ErrNotImplemented for
// one of a later version, and with errors of the operating system.
func Open(path string) (*Record, error) {
	text, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read the record of the set-up: %w", err)
	}
	r := &Record{path: path}
	if text == nil {
		return r, nil
	}
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("%s: %w: it describes how to undo `thinsnap setup` or `thinsnap node install`: restore it, "+
			"or undo the changes by hand and remove it: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	if d.Version != version {
		return nil, fmt.Errorf("%s: version %d: this version of thinsnap reads version %d: use the one that wrote it: %w",
			path, d.Version, version, errdefs.ErrNotImplemented)
	}
	r.entries = d.Files
	return r, nil
}

// Claim records files as created here, and saves the record. written has the SHA-256 of all contents
// written to each path.
func (r *Record) Claim(written map[string][]string) error {
	for path, sums := range written {
		if r.find(path) < 0 {
			r.entries = append(r.entries, entry{Path: path, Created: true, Written: sums})
		}
	}
	return r.save()
}

// Empty reports whether nothing was changed.
func (r *Record) Empty() bool { return len(r.entries) == 0 }

// Created reports whether the file at a path was created here, even if it was edited since.
func (r *Record) Created(path string) bool {
	e, known := r.entry(path)
	return known && e.Created
}

// Edited reports whether the file was created here and has other content than was written.
func (r *Record) Edited(path string, text []byte) bool {
	e, known := r.entry(path)
	return known && e.Created && !slices.Contains(e.Written, sum(text))
}

// entry returns the entry of a file. Its path may have symbolic links.
func (r *Record) entry(path string) (entry, bool) {
	target, err := resolve(path)
	i := r.find(target)
	if err != nil || i < 0 {
		return entry{}, false
	}
	return r.entries[i], true
}

func (r *Record) find(path string) int {
	return slices.IndexFunc(r.entries, func(e entry) bool { return e.Path == path })
}

func sum(text []byte) string {
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:])
}

// save writes the record, or removes it if it is empty.
func (r *Record) save() error {
	if r.Empty() {
		if err := remove(r.path); err != nil {
			return err
		}
		// The directory may have other records.
		_ = os.Remove(filepath.Dir(r.path))
		return nil
	}
	text, err := json.MarshalIndent(document{version, r.entries}, "", "  ")
	if err != nil {
		return err
	}
	return Replace(r.path, append(text, '\n'), 0o600)
}

// Apply changes files in order, and then calls check. If that fails, it undoes the changes, except
// of files that others changed meanwhile. Files that already have their new content are skipped. It
// fails with errdefs.ErrFailedPrecondition if a file has changed since it was read or written, and
// with errors of check and of the operating system.
func (r *Record) Apply(files []File, check func() error) error {
	files = slices.Clone(files)
	for i := range files {
		if err := follow(&files[i]); err != nil {
			return err
		}
	}
	files = slices.DeleteFunc(files, File.Unchanged)
	before := slices.Clone(r.entries)
	for _, f := range files {
		if err := r.add(f); err != nil {
			return errors.Join(err, r.restore(before))
		}
	}
	if err := r.save(); err != nil {
		return errors.Join(fmt.Errorf("record how to undo the set-up: %w", err), r.restore(before))
	}
	for i, f := range files {
		if err := replace(f.Path, f.After, f.Mode); err != nil {
			return errors.Join(err, r.rollBack(files[:i+1], before))
		}
	}
	if err := check(); err != nil {
		return errors.Join(err, r.rollBack(files, before))
	}
	return nil
}

// resolve returns the absolute path of a file without symbolic links. The file may be missing, but
// a link to a missing file is an error, because the new file would replace the link.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	target, err := filepath.EvalSymlinks(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return target, err
	}
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("%s is a symbolic link to a file that is missing: restore the file, or remove the link: %w",
			path, errdefs.ErrFailedPrecondition)
	}
	dir, err := resolve(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// follow resolves symbolic links, and fails if the file has changed since it was read.
func follow(f *File) error {
	target, err := resolve(f.Path)
	if err != nil {
		return err
	}
	f.Path = target
	now, err := read(f.Path)
	if err != nil {
		return err
	}
	if (now == nil) != (f.Before == nil) || !bytes.Equal(now, f.Before) {
		return fmt.Errorf("%s has changed meanwhile: run the command again: %w", f.Path, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// add records a planned change, and creates the needed directories and the backup.
func (r *Record) add(f File) error {
	i := r.find(f.Path)
	if i < 0 {
		r.entries = append(r.entries, entry{Path: f.Path, Created: f.Before == nil})
		i = len(r.entries) - 1
	}
	// Copy the slices of the entry before appending: restore needs the old ones. After an error, the
	// entry must have what was created.
	e := &r.entries[i]
	dirs, err := makeDirs(filepath.Dir(f.Path))
	e.Directories = slices.Concat(e.Directories, dirs)
	if err != nil {
		return err
	}
	// A created file that others have edited has lines of theirs, so undo must not remove it.
	if !e.Created || f.Before == nil || slices.Contains(e.Written, sum(f.Before)) {
		e.Written = append(slices.Clone(e.Written), sum(f.After))
	}
	if !e.Created {
		e.Hunks = append(inEffect(e.Hunks, f.Before), between(f.Before, f.After))
	}
	if !e.Created && (e.Backup == "" || len(e.Hunks) == 1) {
		backup, err := backUp(f)
		if err != nil {
			return err
		}
		e.Backup = backup
	}
	return nil
}

// backUp copies a file to a backup next to it, and returns the path of the copy.
func backUp(f File) (string, error) {
	info, err := os.Stat(f.Path)
	if err != nil {
		return "", err
	}
	for i := 0; ; i++ {
		path := f.Path + ".before-thinsnap"
		if i > 0 {
			path = fmt.Sprintf("%s.%d", path, i)
		}
		present, err := read(path)
		if err != nil {
			return "", err
		}
		if present == nil {
			return path, replace(path, f.Before, info.Mode().Perm())
		}
		if bytes.Equal(present, f.Before) {
			return path, nil
		}
	}
}

// rollBack undoes the changes of files, the last first, and then those of the record. A file that
// others changed meanwhile stays as it is and in the record.
func (r *Record) rollBack(files []File, before []entry) error {
	var all error
	for _, f := range slices.Backward(files) {
		now, err := read(f.Path)
		switch {
		case err != nil:
		case (now == nil) == (f.Before == nil) && bytes.Equal(now, f.Before): // the file was not replaced
		case now == nil || !bytes.Equal(now, f.After):
			err = fmt.Errorf("%s was changed or removed by others meanwhile, and stays as it is: %w", f.Path,
				errdefs.ErrFailedPrecondition)
		case f.Before == nil:
			err = remove(f.Path)
		default:
			err = replace(f.Path, f.Before, 0)
		}
		all = errors.Join(all, err)
	}
	if all != nil {
		return fmt.Errorf("not all changes were undone: run the command with --undo, or `thinsnap node remove`: %w", all)
	}
	return r.restore(before)
}

// restore resets the record. It removes the backups and directories that the record did not have
// before, the last first.
func (r *Record) restore(before []entry) error {
	now := r.entries
	r.entries = before
	err := r.save()
	for _, e := range slices.Backward(now) {
		if i := r.find(e.Path); i >= 0 {
			e.Directories = e.Directories[len(before[i].Directories):] // the new ones, see add
			if e.Backup == before[i].Backup {
				e.Backup = ""
			}
		}
		_, cleanErr := e.clean()
		err = errors.Join(err, cleanErr)
	}
	return err
}

// clean removes an unneeded backup, remnants of a crash, and created directories that are empty. It
// returns the directory that others replaced by a symbolic link, which stays, or "".
func (e entry) clean() (link string, err error) {
	halves, err := filepath.Glob(filepath.Join(filepath.Dir(e.Path), temporary(e.Path)))
	for _, path := range halves {
		err = errors.Join(err, remove(path))
	}
	if e.Backup != "" {
		present, readErr := read(e.Path)
		backup, backupErr := read(e.Backup)
		err = errors.Join(err, readErr, backupErr)
		if err == nil && bytes.Equal(present, backup) {
			err = remove(e.Backup)
		}
	}
	for _, dir := range slices.Backward(e.Directories) {
		// os.Remove would also remove a file or a symbolic link.
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			if info, err := os.Lstat(dir); err == nil && info.Mode().Type() == fs.ModeSymlink {
				link = dir
			}
			break // otherwise it has other files
		}
	}
	return link, err
}
