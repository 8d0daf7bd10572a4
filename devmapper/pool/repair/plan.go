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
	// newSuffix and copySuffix end the names of files that are not ready yet, and of no use after a crash.
	newSuffix, copySuffix = ".new", ".copying"
)

var (
	// ErrNotSaved is returned when what thin_repair has made of the metadata is not fit to take its place. The metadata is
	// as it was.
	ErrNotSaved = errors.New("the metadata was left as it is")
	// ErrNothingToDo is returned for metadata that needs no repair.
	ErrNothingToDo = errors.New("there is nothing to repair")
)

// Metadata is the file with the metadata of a pool that is not in the kernel, and what is known of the pool from
// elsewhere. Nobody else must be using the file.
type Metadata struct {
	// File is the path of the file.
	File string
	// BlockBytes is the pool's block size, and DataBytes the size of its data.
	BlockBytes, DataBytes uint64
	// TransactionID is the pool's, which may lag behind by one.
	TransactionID uint64
	// Used says that the pool has volumes.
	Used bool
}

// Plan is a repair that is to be done.
type Plan struct {
	// Report is why.
	Report Report

	metadata Metadata
	bytes    uint64
	// unsealed says that the superblock does not match its checksum, which may be all that is wrong.
	unsealed bool
	rewrite  []string // thin_repair's command line, nil if the mark is all that there is to take off
	backup   string
}

// Outcome is what a repair has done.
type Outcome struct {
	// Backup is the file with what was there before.
	Backup string
	// Report is on what is there now.
	Report Report
	// Losses are the volumes that have lost something, as far as that can be told.
	Losses []Loss
	// Compared says that it can be told of every volume.
	Compared bool
}

// Plan looks what is wrong with the metadata, and what a repair would do. It changes nothing. With bytes the metadata is
// to be so large afterwards, if it is smaller. ErrNothingToDo if all is well, with the report.
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
		return p, fmt.Errorf("thin_check finds nothing wrong in %s: %w", m.File, ErrNothingToDo)
	}
	if p.Report.Damaged() || p.bytes > present {
		unsealed, err := m.unsealed()
		if err != nil {
			return p, err
		}
		p.rewrite, p.unsealed = m.thinRepair(unsealed), unsealed && p.bytes == present
	}
	p.backup, err = m.backupName(time.Now())
	return p, err
}

// unsealed tells whether the superblock cannot be read.
func (m Metadata) unsealed() (bool, error) {
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

// thinRepair is the command line of thin_repair. It is told of the pool only what it cannot read: it would believe it.
func (m Metadata) thinRepair(unsealed bool) []string {
	args := []string{"thin_repair", "--input", m.File, "--output", m.File + newSuffix}
	if unsealed {
		args = append(args, "--transaction-id", strconv.FormatUint(m.TransactionID, 10),
			"--data-block-size", strconv.FormatUint(m.BlockBytes/devmapper.SectorBytes, 10),
			"--nr-data-blocks", strconv.FormatUint(m.DataBytes/m.BlockBytes, 10))
	}
	return args
}

// Lines are the plan as lines of shell. The backup's name gets an ending that tells what has taken its place.
func (p Plan) Lines() []string {
	file := p.metadata.File
	made := file + newSuffix
	var lines []string
	switch {
	case p.rewrite == nil:
		lines = []string{"cp --sparse=always " + file + " " + made}
	case p.unsealed:
		lines = []string{"# a copy whose superblock has the right checksum, if thin_check finds nothing else wrong; if it does:"}
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
