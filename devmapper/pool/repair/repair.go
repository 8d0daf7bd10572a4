package repair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

const (
	sectorBytes = 512
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
		if p.rewrite, err = m.thinRepair(); err != nil {
			return p, err
		}
	}
	p.backup, err = m.backupName(time.Now())
	return p, err
}

// thinRepair is the command line of thin_repair. It is told of the pool only what it cannot read: it would believe it.
func (m Metadata) thinRepair() ([]string, error) {
	args := []string{"thin_repair", "--input", m.File, "--output", m.File + newSuffix}
	file, err := os.Open(m.File)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	switch _, err := thinmeta.Open(file); {
	case errors.Is(err, thinmeta.ErrDamaged), errors.Is(err, thinmeta.ErrNoMetadata):
		return append(args, "--transaction-id", strconv.FormatUint(m.TransactionID, 10),
			"--data-block-size", strconv.FormatUint(m.BlockBytes/sectorBytes, 10),
			"--nr-data-blocks", strconv.FormatUint(m.DataBytes/m.BlockBytes, 10)), nil
	case err != nil:
		return nil, fmt.Errorf("read the superblock in %s: %w", m.File, err)
	}
	return args, nil
}

// Lines are the plan as lines of shell. The backup's name gets an ending that tells what has taken its place.
func (p Plan) Lines() []string {
	file := p.metadata.File
	made := file + newSuffix
	first := []string{"cp --sparse=always " + file + " " + made}
	if p.rewrite != nil {
		first = []string{fmt.Sprintf("truncate --size %d %s", p.bytes, made), strings.Join(p.rewrite, " ")}
	}
	return append(first,
		"thin_check --clear-needs-check-flag "+made,
		"cp --sparse=always "+file+" "+p.backup,
		"sync",
		"mv "+made+" "+file)
}

// Do does it: it makes new metadata of the old, looks whether that is fit, keeps a copy of the old beside it, and
// then puts the new in its place. If it fails, or is killed, before that last step, the metadata is as it was.
func (p Plan) Do(ctx context.Context) (o Outcome, err error) {
	m := p.metadata
	made := m.File + newSuffix
	if err := m.clean(); err != nil {
		return o, fmt.Errorf("repair %s: %w", m.File, err)
	}
	defer func() { err = errors.Join(err, remove(made)) }()
	if err := p.make(ctx, made); err != nil {
		return o, fmt.Errorf("repair %s: %w", m.File, err)
	}
	if o.Report, err = check(ctx, made, "--clear-needs-check-flag"); err != nil {
		return o, fmt.Errorf("check what is to take the place of %s: %w", m.File, err)
	}
	o.Report.Path = m.File
	if !o.Report.Good() {
		return o, fmt.Errorf("thin_check does not take what was made of %s: %s: %w",
			m.File, strings.Join(o.Report.Complaints, ", "), ErrNotSaved)
	}
	if o.Losses, o.Compared, err = p.compare(ctx, made); err != nil {
		return o, fmt.Errorf("look at what is to take the place of %s: %w", m.File, err)
	}
	o.Backup, err = m.replace(ctx, made, p.backup)
	return o, err
}

// make writes the new metadata.
func (p Plan) make(ctx context.Context, made string) error {
	if p.rewrite == nil {
		return copySparse(ctx, p.metadata.File, made)
	}
	f, err := create(made)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(p.bytes)), f.Close()); err != nil {
		return err
	}
	log.G(ctx).WithField("file", p.metadata.File).Info("having thin_repair write the pool's metadata anew")
	if _, err := run(ctx, p.rewrite...); err != nil {
		return fmt.Errorf("%w: %w", err, ErrNotSaved)
	}
	return nil
}

// compare sees that what was made is of this pool, and what it lacks of what was there.
func (p Plan) compare(ctx context.Context, made string) (lost []Loss, compared bool, err error) {
	m := p.metadata
	is, err := blockdev.OpenDirect(made)
	if err != nil {
		return nil, false, err
	}
	defer is.Close()
	metadata, err := thinmeta.Open(is)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", err, ErrNotSaved)
	}
	sb := metadata.Superblock()
	if got := uint64(sb.DataBlockSectors) * sectorBytes; got != m.BlockBytes {
		return nil, false, fmt.Errorf("it has blocks of %d bytes, and the pool of %d: %w", got, m.BlockBytes, ErrNotSaved)
	}
	if sb.TransactionID != m.TransactionID && sb.TransactionID+1 != m.TransactionID {
		return nil, false, fmt.Errorf("its transaction id is %d, and the pool's is %d: they are not of the same moment: %w",
			sb.TransactionID, m.TransactionID, ErrNotSaved)
	}
	after, err := read(ctx, metadata)
	if err != nil {
		return nil, false, err
	}
	if len(after.volumes) == 0 && m.Used {
		return nil, false, fmt.Errorf("thin_repair found not one volume in it: %w", ErrNotSaved)
	}
	was, err := blockdev.OpenDirect(m.File)
	if err != nil {
		return nil, false, err
	}
	defer was.Close()
	if metadata, err = thinmeta.OpenDamaged(was); err != nil {
		return nil, false, ctx.Err()
	}
	before, err := read(ctx, metadata)
	if err != nil {
		return nil, false, err
	}
	treeless := make(map[uint32]bool)
	if whole, err := metadata.Whole(ctx, 0, ^uint32(0)); err == nil {
		for id, isWhole := range whole {
			treeless[id] = !isWhole
		}
	}
	return losses(before, after, treeless), before.all, ctx.Err()
}

// replace keeps a copy of the metadata, and puts what was made in its place.
func (m Metadata) replace(ctx context.Context, made, backup string) (string, error) {
	tag, err := tagOf(made)
	if err != nil {
		return "", err
	}
	backup += "-" + tag
	temporary := m.File + copySuffix
	defer func() { _ = remove(temporary) }()
	if err := errors.Join(syncFile(made), copySparse(ctx, m.File, temporary), syncFile(temporary)); err != nil {
		return "", fmt.Errorf("keep what is in %s: %w", m.File, err)
	}
	if err := errors.Join(os.Rename(temporary, backup), syncFile(filepath.Dir(m.File))); err != nil {
		return "", fmt.Errorf("keep what is in %s: %w", m.File, err)
	}
	if err := ctx.Err(); err != nil {
		return backup, err
	}
	if err := os.Rename(made, m.File); err != nil {
		return backup, fmt.Errorf("put the new metadata in its place: %w", err)
	}
	return backup, syncFile(filepath.Dir(m.File))
}

// clean removes what an interrupted repair has left half made.
func (m Metadata) clean() error {
	return errors.Join(remove(m.File+newSuffix), remove(m.File+copySuffix))
}
