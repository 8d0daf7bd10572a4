package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Undo returns the changes that would undo all recorded ones, the last first. left has the files
// that were edited since at the changed lines; they stay as they are.
func (r *Record) Undo() (files []File, left []string, err error) {
	for _, e := range slices.Backward(r.entries) {
		now, err := read(e.Path)
		if err != nil {
			return nil, nil, err
		}
		after, isOurs := e.revert(now)
		switch {
		case !isOurs:
			left = append(left, e.Path)
		case (now == nil) != (after == nil) || !bytes.Equal(now, after):
			f := File{Path: e.Path, Before: now, After: after}
			if target, err := filepath.EvalSymlinks(e.Path); err == nil && after != nil {
				f.Path = target // the file may have moved behind a link since
			}
			files = append(files, f)
		}
	}
	return files, left, nil
}

// revert returns the content of a file without the changes, nil for no file. It returns false if
// the changed lines were edited.
func (e entry) revert(now []byte) ([]byte, bool) {
	if now == nil {
		return nil, true
	}
	if e.Created {
		return nil, slices.Contains(e.Written, sum(now))
	}
	for _, h := range slices.Backward(e.Hunks) {
		if sum(now) == h.Before {
			continue // it was not made, or is undone
		}
		before, ok := h.revert(now)
		if !ok && h.isGone(now) {
			continue
		}
		if !ok || json.Valid(now) && !json.Valid(before) && sum(before) != h.Before {
			return nil, false
		}
		now = before
	}
	return now, true
}

// TakeBack makes the changes of Undo. Edited files stay in the record, and the error is
// errdefs.ErrFailedPrecondition, with their names. After errors of the operating system it can be
// repeated.
func (r *Record) TakeBack() error {
	files, left, err := r.Undo()
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.After == nil {
			err = remove(f.Path)
		} else {
			err = replace(f.Path, f.After, 0)
		}
		if err != nil {
			return err
		}
	}
	undone := slices.DeleteFunc(slices.Clone(r.entries), func(e entry) bool { return slices.Contains(left, e.Path) })
	r.entries = slices.DeleteFunc(r.entries, func(e entry) bool { return !slices.Contains(left, e.Path) })
	err = r.save()
	var links []string
	for _, e := range slices.Backward(undone) {
		link, cleanErr := e.clean()
		if err = errors.Join(err, cleanErr); link != "" {
			links = append(links, link)
		}
	}
	if err == nil && len(left) > 0 {
		kept := ""
		if len(links) > 0 {
			kept = " (symbolic links in place of created directories stay too: " + strings.Join(links, ", ") + ")"
		}
		err = fmt.Errorf("edited since the set-up, so not changed: %s%s: remove by hand the added lines or files, and then "+
			"their record %s: %w", strings.Join(left, ", "), kept, r.path, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Backups returns the paths of the copies from before the recorded changes.
func (r *Record) Backups() []string {
	var paths []string
	for _, e := range r.entries {
		if e.Backup != "" {
			paths = append(paths, e.Backup)
		}
	}
	return paths
}
