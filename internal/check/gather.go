package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// Sources are the sources of a check.
type Sources struct {
	Store *metadata.Store
	// Pool is nil if the pool is not loaded; its metadata is then read from its device or file.
	Pool *pool.Pool
	// Stored is the pool as recorded in the store, or nil.
	Stored Stored
	// MountDir is the daemon's mount directory.
	MountDir string
	// Running and Unrecorded are as in Input.
	Running    bool
	Unrecorded func() map[thin.ID]bool
}

// Stored is a pool as recorded in the store. It need not be loaded.
type Stored interface {
	// Files returns the files of a pool in loop files.
	Files() []string
	ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error
}

// Run reads and compares everything. If the store cannot be read completely, Run reports only that:
// volumes of unread records would look foreign.
func Run(ctx context.Context, from Sources) (Report, error) {
	in := Input{Running: from.Running, Now: time.Now()}
	var err error
	if in.Records, err = ReadRecords(ctx, from.Store); err != nil {
		return Report{}, err
	}
	if in.Records.Unread {
		in.Findings = append(in.Findings, Finding{
			Kind: KindStore, Subject: "store", Text: "cannot be read completely, so it was not compared with the " +
				"kernel and the pool",
		})
		return Compare(ctx, in)
	}
	if in.Mounts, err = names(from.MountDir); err != nil {
		return Report{}, err
	}
	if in.Records.Pool.Complete {
		if in.Loops, err = strayLoops(from); err != nil {
			return Report{}, err
		}
	}
	if from.Pool != nil {
		status, err := from.Pool.Status(ctx)
		if err != nil {
			return Report{}, err
		}
		in.Status = &status
		if in.Devices, err = from.Pool.MappedDevices(ctx); err != nil {
			return Report{}, err
		}
	}
	if from.Unrecorded != nil {
		in.Unrecorded = from.Unrecorded()
	}
	var report Report
	compare := func(contents *thinmeta.Metadata) (err error) {
		if contents != nil {
			in.Contents = contents
			after, err := from.Store.Pool(ctx)
			if err != nil {
				return err
			}
			in.TransactionAfter = after.TransactionID
			in.DataUsed = from.dataUsed(ctx, in, contents)
		}
		report, err = Compare(ctx, in)
		return err
	}
	if err := from.readMetadata(ctx, &in, compare); err != nil {
		return Report{}, err
	}
	return report, nil
}

// dataUsed returns the number of used data blocks at the time of the contents, or nil if it is
// unknown. The contents of a loaded pool were read between two reads of its status; the number is
// known if it is equal in both.
func (from Sources) dataUsed(ctx context.Context, in Input, contents *thinmeta.Metadata) *uint64 {
	if from.Pool == nil {
		used := contents.Superblock().DataUsed
		return &used
	}
	status, err := from.Pool.Status(ctx)
	if err != nil || status.DataUsed != in.Status.DataUsed {
		return nil
	}
	return &status.DataUsed
}

// readMetadata calls compare with the pool's metadata, or with nil and findings if it cannot be
// read.
func (from Sources) readMetadata(ctx context.Context, in *Input, compare func(*thinmeta.Metadata) error) error {
	compared := false
	read := func(m *thinmeta.Metadata) error {
		compared = true
		return compare(m)
	}
	var err error
	switch {
	case from.Pool != nil:
		err = from.Pool.ReadMetadata(ctx, read)
	case in.Records.Pool.Complete:
		err = from.Stored.ReadMetadata(ctx, read)
	}
	if compared || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	switch {
	case err == nil, errors.Is(err, thin.ErrPoolReadOnly), errors.Is(err, thin.ErrPoolFailed):
		// The pool does not exist yet, or its status is already a finding.
	case errors.Is(err, pool.ErrMetadataSnapshot):
		f := Finding{
			Kind: KindMetadataSnapshot, Subject: "pool", Repair: "release it",
			Text: "it has a metadata snapshot, left by a crash or not ours; its volumes were not checked",
		}
		switch {
		case in.Records.Pool.Foreign():
			f.Repair = ""
			f.Text += "; if it is unused, release it with `dmsetup message NAME 0 release_metadata_snap`"
			in.Findings = append(in.Findings, f)
		case from.Running:
			in.Findings = append(in.Findings, f)
		default:
			in.Pending = append(in.Pending, f)
		}
	case errors.Is(err, pool.ErrMetadataShort):
		in.Findings = append(in.Findings, Finding{Kind: KindPool, Subject: "pool", Text: metadataShort})
	default:
		in.Findings = append(in.Findings, Finding{
			Kind: KindPool, Subject: "pool", Text: fmt.Sprintf("its volumes cannot be checked: %v", err),
		})
	}
	return compare(nil)
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := make([]string, 0, len(entries))
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all, nil
}

// strayLoops returns the loop devices on the pool's files, except those that the pool uses.
func strayLoops(from Sources) ([]blockdev.LoopState, error) {
	loops, err := blockdev.Loops()
	if err != nil {
		return nil, err
	}
	var backing pool.Backing
	if from.Pool != nil {
		if backing, err = from.Pool.Backing(); err != nil {
			return nil, err
		}
	}
	var stray []blockdev.LoopState
	for _, file := range from.Stored.Files() {
		info, err := os.Stat(file)
		if err != nil {
			continue // a missing file has no loop device, and opening the pool reports it
		}
		for _, l := range loops {
			if l.SameFile(info) && l.Path != backing.DataPath && l.Path != backing.MetadataPath {
				stray = append(stray, l)
			}
		}
	}
	return stray, nil
}
