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
	openName   = "journal.json" // the record of an unfinished adoption or undo
	closedName = "adopted.json" // the record of a complete adoption
	storeName  = "store.db"     // the store when it was built
	backupName = "backup"       // the directory with the copy of meta.db and with builtinDir
	builtinDir = "devmapper"    // the directory with the copies of the built-in's databases; one can be named meta.db
)

// recordFormat is the version of a Record.
const recordFormat = 1

// A Phase is the state of an adoption.
type Phase string

// The phases of an adoption.
const (
	Forward Phase = "forward" // unfinished: `thinsnap adopt devmapper` completes or undoes it
	Back    Phase = "back"    // being undone: `thinsnap adopt devmapper --undo` completes that
	Adopted Phase = "adopted" // complete
)

// A Record describes an adoption, in ROOT/adopt, until it is undone.
type Record struct {
	Format   int    // recordFormat
	ID       string // unique to the adoption
	Thinsnap string // the version of the program, if known
	Phase    Phase
	Began    time.Time // UTC
	Ended    time.Time // UTC; zero until it is complete

	ContainerdRoot string // these five are from plan.Options
	RootPath       string
	Pool           string
	From           string
	Proxy          string

	Device Pool // the mapped device of Pool

	// SHA256 has the checksums of the built-in's databases in hexadecimal, by file name.
	SHA256 map[string]string
	// LeaveOut has the snapshots that keep the name From in containerd's database, by namespace.
	LeaveOut map[string][]string `json:",omitempty"`
	// Idle has the built-in's mapped devices to deactivate.
	Idle []IdleDevice `json:",omitempty"`

	Snapshots int // the number of adopted snapshots, Views included
	Left      int // the number of snapshots left out
	Kept      int // the number of kept leftovers
}

// A Pool identifies the pool's mapped device.
type Pool struct {
	MappedDevice string
	UUID         string // of the mapped device; "" if it has none
	BlockBytes   uint64
}

// An IdleDevice is a mapped device of the built-in that no process used.
type IdleDevice struct {
	Name     string
	VolumeID thin.ID
	Sectors  uint64 // of 512 bytes; 0 if it had no table
	ReadOnly bool
}

// Read returns the record of the adoption in a root, complete or not. It fails with
// errdefs.ErrNotFound if the root has none.
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

// Unfinished fails with errdefs.ErrFailedPrecondition, and names the remedy, if an adoption in the
// root is neither complete nor undone. The root's store must not be used then.
func Unfinished(root string) error {
	path := filepath.Join(rootdir.Adoption(root), openName)
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for an unfinished adoption: %w", err)
	}
	remedy := "run `thinsnap adopt devmapper --yes` again to complete it, or with `--undo` to undo it"
	if r, err := readRecord(path); err == nil && r.Phase == Back {
		remedy = "run `thinsnap adopt devmapper --undo` again to complete the undo"
	}
	return fmt.Errorf("an adoption was begun but not completed (%s): %s: %w", path, remedy, errdefs.ErrFailedPrecondition)
}

// put writes the record to the file name in dir.
func (r Record) put(dir, name string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, name), append(b, '\n'), 0o600)
}

// toJSON converts a LeaveOut for a record. It fails for a name that JSON cannot represent;
// containerd makes none.
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
