package repair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

const (
	// newSuffix and copySuffix end the names of unfinished files, which are useless after a crash.
	newSuffix, copySuffix = ".new", ".copying"
)

var (
	// ErrNotRepaired is returned when the repaired metadata is not usable. The old metadata is
	// unchanged.
	ErrNotRepaired = errors.New("the metadata was not changed")
	// ErrNothingToDo is returned for metadata that needs no repair.
	ErrNothingToDo = errors.New("there is nothing to repair")
)

// Metadata is the metadata file of an inactive pool, and the pool's properties from the store. The
// file must not be in use.
type Metadata struct {
	// File is the path of the file.
	File string
	// BlockBytes is the pool's block size, and DataBytes the size of its data.
	BlockBytes, DataBytes uint64
	// TransactionID is the pool's transaction id; the one in the metadata may be one less.
	TransactionID uint64
	// Used is true if the pool has volumes.
	Used bool
}

// Plan is a repair before its execution.
type Plan struct {
	// Report is the reason for the repair.
	Report Report

	metadata Metadata
	bytes    uint64
	// tryChecksum is true if the superblock is damaged, perhaps only in its checksum, and the size
	// does not change.
	tryChecksum bool
	rewrite     []string // thin_repair's command line; nil if only the needs_check flag must be cleared
	backup      string
}

// Outcome is the result of a repair.
type Outcome struct {
	// Backup is the file with the old metadata.
	Backup string
	// Report is the check of the new metadata.
	Report Report
	// Losses are the volumes that are known to have lost blocks.
	Losses []Loss
	// Compared is true if Losses is complete.
	Compared bool
}

// Plan checks the metadata, and returns the repair that it needs. It changes nothing. The repaired
// metadata has at least the given size in bytes. It returns ErrNothingToDo, with the report, if no
// repair is needed.
func (m Metadata) Plan(ctx context.Context, bytes uint64) (Plan, error) {
	p := Plan{metadata: m}
	present, err := size(m.File)
	if err != nil {
		return p, fmt.Errorf("plan a repair: %w", err)
	}
	if p.Report, err = Check(ctx, m.File); err != nil {
		return p, err
	}
	p.bytes = max(bytes, present)
	if p.Report.Good() && p.bytes == present {
		return p, fmt.Errorf("%s has no damage: %w", m.File, ErrNothingToDo)
	}
	if p.Report.Damaged() || p.Report.Lost > 0 || p.bytes > present {
		damaged, err := m.superblockDamaged()
		if err != nil {
			return p, err
		}
		p.rewrite, p.tryChecksum = m.thinRepair(damaged), damaged && p.bytes == present
	}
	p.backup, err = m.backupName(time.Now())
	return p, err
}

// superblockDamaged reports whether the superblock is damaged.
func (m Metadata) superblockDamaged() (bool, error) {
	file, err := os.Open(m.File)
	if err != nil {
		return false, err
	}
	defer file.Close()
	_, err = thinmeta.Open(file)
	if errors.Is(err, thinmeta.ErrDamaged) || errors.Is(err, thinmeta.ErrNoMetadata) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the superblock in %s: %w", m.File, err)
	}
	return false, nil
}

// thinRepair returns the command line of thin_repair. For a damaged superblock it has options that
// replace the superblock's fields.
func (m Metadata) thinRepair(superblockDamaged bool) []string {
	args := []string{"thin_repair", "--input", m.File, "--output", m.File + newSuffix}
	if superblockDamaged {
		args = append(args, "--transaction-id", strconv.FormatUint(m.TransactionID, 10),
			"--data-block-size", strconv.FormatUint(m.BlockBytes/devmapper.SectorBytes, 10),
			"--nr-data-blocks", strconv.FormatUint(m.DataBytes/m.BlockBytes, 10))
	}
	return args
}

// Lines returns the plan as shell commands. The backup's name gets a suffix that depends on the new
// metadata.
func (p Plan) Lines() []string {
	file := p.metadata.File
	made := file + newSuffix
	var lines []string
	switch {
	case p.rewrite == nil:
		lines = []string{"cp --sparse=always " + file + " " + made}
	case p.tryChecksum:
		lines = []string{"# first try: a copy with a corrected checksum of the superblock; " +
			"if thin_check finds other damage in it:"}
		fallthrough
	default:
		lines = append(lines, fmt.Sprintf("truncate --size %d %s", p.bytes, made), strings.Join(p.rewrite, " "))
	}
	return append(lines,
		"thin_check --clear-needs-check-flag "+made,
		"cp --sparse=always "+file+" "+p.backup,
		"sync",
		"mv "+made+" "+file)
}
