package adopt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/rootdir"
)

// The files of ROOT/adopt.
const (
	openName   = "journal.json" // the record while something is under way
	closedName = "adopted.json" // the record of an adoption that is complete
	storeName  = "store.db"     // the store as it was built
	backupName = "backup"       // the directory with copies of the three databases: meta.db, and in
	builtinDir = "devmapper"    // a directory there, those of the built-in, of which one can have that name, too
)

// recordFormat is the version of a Record.
const recordFormat = 1

// A Phase is where an adoption is.
type Phase string

// The phases.
const (
	Forward Phase = "forward" // it was begun, and `thinsnap adopt` ends it or goes back
	Back    Phase = "back"    // it is being undone, which `thinsnap adopt --undo` ends
	Adopted Phase = "adopted" // it is complete
)

// A Record is what an adoption keeps of itself, in ROOT/adopt, until it is undone.
type Record struct {
	Format   int    // recordFormat
	ID       string // no other adoption has it
	Thinsnap string // the version of the program; empty if unknown
	Phase    Phase
	Began    time.Time // UTC
	Ended    time.Time // UTC; zero unless it is complete

	ContainerdRoot string // these five are those of plan.Options
	RootPath       string
	Pool           string
	From           string
	Proxy          string

	Device Pool // what Pool is in the kernel

	// SHA256 are those of the built-in's databases, in hexadecimal, by the name of the file.
	SHA256 map[string]string
	// LeaveOut are the snapshots that keep the name From in containerd's database, by namespace.
	LeaveOut map[string][]string `json:",omitempty"`
	// Idle are the built-in's mapped devices that were deactivated.
	Idle []IdleDevice `json:",omitempty"`

	Snapshots int // that were adopted, Views included
	Left      int // that were left out
	Kept      int // volumes that nothing needs
}

// A Pool identifies the pool in the kernel.
type Pool struct {
	MappedDevice string
	UUID         string // of that device; it may have none
	BlockBytes   uint64
}

// An IdleDevice is a mapped device of the built-in's that no process used.
type IdleDevice struct {
	Name     string
	VolumeID thin.ID
	Sectors  uint64 // of 512 bytes; 0 if it had no table
	ReadOnly bool
}

// Read returns the record of the adoption in a root that is complete or under way. It is
// errdefs.ErrNotFound if there is none.
func Read(root string) (Record, error) {
	r, err := readRecord(filepath.Join(rootdir.Adoption(root), openName))
	if errors.Is(err, fs.ErrNotExist) {
		r, err = readRecord(filepath.Join(rootdir.Adoption(root), closedName))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("no adoption in %s: %w", root, errdefs.ErrNotFound)
	}
	return r, err
}

func readRecord(path string) (Record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	if r.Format != recordFormat {
		return r, fmt.Errorf("read %s: it has format %d, written by thinsnap %q, and this thinsnap knows %d: "+
			"use that version: %w", path, r.Format, r.Thinsnap, recordFormat, errdefs.ErrNotImplemented)
	}
	return r, nil
}

// Unfinished is errdefs.ErrFailedPrecondition, with the remedy, while an adoption in a root is neither
// complete nor undone. Nothing may use the root's store then.
func Unfinished(root string) error {
	path := filepath.Join(rootdir.Adoption(root), openName)
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for an adoption that was begun: %w", err)
	}
	remedy := "run `thinsnap adopt devmapper --yes` again to end it, or with `--undo` to go back"
	if r, err := readRecord(path); err == nil && r.Phase == Back {
		remedy = "run `thinsnap adopt devmapper --undo` again to end its way back"
	}
	return fmt.Errorf("an adoption was begun and not ended (%s): %s: %w", path, remedy, errdefs.ErrFailedPrecondition)
}

// put writes the record under a name in ROOT/adopt.
func (r Record) put(dir, name string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, name), append(b, '\n'), 0o600)
}

// toJSON returns a LeaveOut for a record. A name that JSON cannot keep is an error: containerd makes none.
func toJSON(leave metadb.LeaveOut) (map[string][]string, error) {
	all := make(map[string][]string, len(leave))
	for ns, names := range leave {
		for name := range names {
			if !utf8.ValidString(ns) || !utf8.ValidString(name) {
				return nil, fmt.Errorf("snapshot %q of namespace %q: its name is not UTF-8: %w", name, ns,
					errdefs.ErrNotImplemented)
			}
			all[ns] = append(all[ns], name)
		}
		slices.Sort(all[ns])
	}
	return all, nil
}
