package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

const (
	// recordPath is the file with the pending steps, and filesPath the file with the list of
	// written files.
	recordPath = "/etc/thinsnap/node.json"
	filesPath  = "/etc/thinsnap/node-files.json"
)

// record is the content of these two files.
type record struct {
	// RestartDaemon is true until the daemon is restarted with its new files.
	RestartDaemon bool `json:"restart_daemon,omitempty"`
	// Restarts are the pending restarts, by the kind of containerd.
	Restarts map[setup.Kind]restart `json:"restarts,omitempty"`
	// RestartUnit is the unit, or "containerd" without one, of the pending restart in records of
	// earlier versions. They did not record its kind.
	RestartUnit string `json:"restart_unit,omitempty"`
	// Files are the SHA-256 sums of written files, by path, in records of earlier versions.
	Files map[string][]string `json:"files,omitempty"`

	files *journal.Record
}

// A restart is pending for a containerd whose configuration may have changed, until it is restarted
// or found unchanged.
type restart struct {
	// Process must be restarted. It is nil if it is unknown, or if the containerd has a unit.
	Process *clients.Process `json:"process,omitempty"`
}

// isPending reports whether a containerd must still be restarted. One without a unit may have been
// restarted by hand.
func (r record) isPending(kind setup.Kind, c Containerd) bool {
	of, known := r.Restarts[kind]
	if !known {
		return r.RestartUnit != ""
	}
	return c.Unit != "" || of.Process == nil || c.Process.PID == 0 || c.Process.Same(*of.Process)
}

// setPending records a restart in place of one with the same or an unknown kind.
func (r *record) setPending(kind setup.Kind, process *clients.Process) {
	if r.Restarts == nil {
		r.Restarts = make(map[setup.Kind]restart)
	}
	r.Restarts[kind] = restart{process}
	r.RestartUnit = ""
}

// readRecord returns an empty record if the machine has none.
func (m *Machine) readRecord() (r record, isThere bool, err error) {
	if r.files, err = journal.Open(m.path(filesPath)); err != nil {
		return r, true, err
	}
	text, err := os.ReadFile(m.path(recordPath))
	if errors.Is(err, fs.ErrNotExist) {
		return r, !r.files.Empty(), nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, true, fmt.Errorf("%s: %w: remove thinsnap's program, units and configuration by hand, then this file",
			recordPath, err)
	}
	if len(r.Files) == 0 {
		return r, true, nil
	}
	written := make(map[string][]string, len(r.Files))
	for path, sums := range r.Files {
		written[m.path(path)] = sums
	}
	if err := r.files.Claim(written); err != nil {
		return r, true, err
	}
	r.Files = nil
	return r, true, m.writeRecord(r)
}

func (m *Machine) writeRecord(r record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return journal.Replace(m.path(recordPath), append(text, '\n'), 0o644)
}

// removeRecord removes the record, and its directory if that is empty.
func (m *Machine) removeRecord() error {
	for _, path := range []string{filesPath, recordPath} {
		if err := os.Remove(m.path(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_ = os.Remove(m.path(filepath.Dir(recordPath)))
	return nil
}

// changes returns the changes that give the files their contents. It fails with
// errdefs.ErrFailedPrecondition if a file is not the installer's, or was edited.
func (m *Machine) changes(r record, files []journal.File) ([]journal.File, error) {
	var all []journal.File
	for _, f := range files {
		path := f.Path
		f.Path = m.path(path)
		present, err := os.ReadFile(f.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			f.Before = append([]byte{}, present...)
		}
		isOurs := r.files.Created(f.Path) && !r.files.Edited(f.Path, f.Before)
		if f.Before != nil && !f.Unchanged() && !isOurs {
			return nil, fmt.Errorf("%s was changed on this machine, or is not the installer's: move it away: %w", path,
				errdefs.ErrFailedPrecondition)
		}
		if !f.Unchanged() {
			all = append(all, f)
		}
	}
	return all, nil
}
