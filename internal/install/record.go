package install

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
)

// recordPath is the file that says what was written.
const recordPath = "/etc/thinsnap/node.json"

// record is what the file has.
type record struct {
	// Files has the SHA-256 of what was written, by path: of two versions while one replaces the other.
	Files map[string][]string `json:"files"`
	// RestartDaemon is true while the daemon has to be restarted for its files.
	RestartDaemon bool `json:"restart_daemon,omitempty"`
	// RestartUnit is the unit of a containerd whose configuration was changed, until it is restarted.
	RestartUnit string `json:"restart_unit,omitempty"`
}

// readRecord returns an empty record if the machine has none.
func (m *Machine) readRecord() (r record, isThere bool, err error) {
	r = record{Files: map[string][]string{}}
	text, err := os.ReadFile(m.path(recordPath))
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, true, fmt.Errorf("%s: %w: remove the files of thinsnap by hand, then this one", recordPath, err)
	}
	return r, true, nil
}

func (m *Machine) writeRecord(r record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replace(m.path(recordPath), append(text, '\n'), 0o644)
}

// removeRecord removes an empty record, with its directory if that is empty, too.
func (m *Machine) removeRecord() error {
	if err := os.Remove(m.path(recordPath)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(m.path(filepath.Dir(recordPath))) // it may have files of others
	return nil
}

func sum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}

// state tells whether a file has some content already. It is FailedPrecondition if it has what is neither
// that nor in the record.
func (m *Machine) state(r record, f file) (isThere bool, err error) {
	present, err := os.ReadFile(m.path(f.path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case bytes.Equal(present, f.content):
		return true, nil
	case slices.Contains(r.Files[f.path], sum(present)):
		return false, nil
	}
	return false, fmt.Errorf("%s was changed on this machine, or is not the installer's: move it away: %w", f.path,
		errdefs.ErrFailedPrecondition)
}

// replace gives a file other content, atomically and durably.
func replace(path string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync())
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDirectory(dir)
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
