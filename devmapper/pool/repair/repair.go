package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Do executes the plan: it writes new metadata, verifies it, backs up the old and swaps them. If it
// fails, or is killed, before the swap, the metadata is unchanged.
func (p Plan) Do(ctx context.Context) (o Outcome, err error) {
	m := p.metadata
	made := m.File + newSuffix
	if err := m.clean(); err != nil {
		return o, fmt.Errorf("repair %s: %w", m.File, err)
	}
	defer func() { err = errors.Join(err, remove(made)) }()
	after, err := p.make(ctx, made, &o)
	if err != nil {
		return o, fmt.Errorf("repair %s: %w", m.File, err)
	}
	if o.Losses, o.Compared, err = m.compare(ctx, after); err != nil {
		return o, fmt.Errorf("compare %s with the repaired metadata: %w", m.File, err)
	}
	o.Backup, err = m.replace(ctx, made, p.backup)
	return o, err
}

// make writes the new metadata and verifies it. It returns the new contents.
func (p Plan) make(ctx context.Context, made string, o *Outcome) (contents, error) {
	m := p.metadata
	if p.tryChecksum {
		after, err := m.correctChecksum(ctx, made, o)
		if err == nil || !errors.Is(err, ErrNotRepaired) {
			return after, err
		}
		log.G(ctx).WithError(err).Info("the metadata has more damage than the superblock's checksum")
		if err := remove(made); err != nil {
			return contents{}, err
		}
	}
	if p.rewrite == nil {
		if err := copySparse(ctx, m.File, made); err != nil {
			return contents{}, err
		}
		return m.verify(ctx, made, o)
	}
	f, err := create(made)
	if err != nil {
		return contents{}, err
	}
	if err := errors.Join(f.Truncate(int64(p.bytes)), f.Close()); err != nil {
		return contents{}, err
	}
	log.G(ctx).WithField("file", m.File).Info("rebuilding the pool's metadata with thin_repair")
	if _, err := run(ctx, p.rewrite...); err != nil {
		return contents{}, fmt.Errorf("%w: %w", err, ErrNotRepaired)
	}
	return m.verify(ctx, made, o)
}

// correctChecksum writes a copy with the correct checksum in the superblock. If the trees and
// counts below are valid, so are the superblock's other fields.
func (m Metadata) correctChecksum(ctx context.Context, made string, o *Outcome) (contents, error) {
	if err := copySparse(ctx, m.File, made); err != nil {
		return contents{}, err
	}
	f, err := os.OpenFile(made, os.O_RDWR, 0)
	if err != nil {
		return contents{}, err
	}
	defer f.Close()
	sum, err := thinmeta.SuperblockChecksum(f)
	if err != nil {
		return contents{}, fmt.Errorf("%w: %w", err, ErrNotRepaired)
	}
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, sum), 0); err != nil {
		return contents{}, err
	}
	metadata, err := thinmeta.Open(f)
	if err != nil {
		return contents{}, fmt.Errorf("%w: %w", err, ErrNotRepaired)
	}
	if metadata.Superblock().HeldRoot != 0 {
		return contents{}, fmt.Errorf("the superblock has a metadata snapshot, so it cannot be trusted: %w", ErrNotRepaired)
	}
	return m.verify(ctx, made, o)
}

// verify runs thin_check on the new metadata, and checks that it belongs to this pool.
func (m Metadata) verify(ctx context.Context, made string, o *Outcome) (after contents, err error) {
	if o.Report, err = check(ctx, made, "--clear-needs-check-flag"); err != nil {
		return after, err
	}
	o.Report.Path = m.File
	if !o.Report.Good() {
		return after, fmt.Errorf("the repaired metadata needs a repair itself: %s: %w", o.Report.problems(), ErrNotRepaired)
	}
	file, err := blockdev.OpenDirect(made)
	if err != nil {
		return after, err
	}
	defer file.Close()
	metadata, err := thinmeta.Open(file)
	if err != nil {
		return after, fmt.Errorf("%w: %w", err, ErrNotRepaired)
	}
	if after, err = read(ctx, metadata); err != nil {
		return after, err
	}
	sb := metadata.Superblock()
	switch {
	case uint64(sb.DataBlockSectors)*devmapper.SectorBytes != m.BlockBytes:
		err = fmt.Errorf("it has blocks of %d bytes, the pool of %d", sb.DataBlockSectors*devmapper.SectorBytes, m.BlockBytes)
	case sb.TransactionID != m.TransactionID && sb.TransactionID+1 != m.TransactionID:
		// The pool may have given blocks of these volumes to others since: no mapping shows that.
		err = fmt.Errorf("its transaction id is %d, but that of the store is %d, so it does not match the store: restore "+
			"the store and the pool from the same moment, or start over with `thinsnap pool destroy`", sb.TransactionID,
			m.TransactionID)
	case after.time > sb.Time:
		// The kernel would overwrite blocks that volumes share.
		err = fmt.Errorf("its time is %d, but it has a mapping of time %d", sb.Time, after.time)
	case len(after.volumes) == 0 && m.Used:
		err = errors.New("it has no volumes")
	}
	if err != nil {
		return after, fmt.Errorf("the repaired metadata is not usable: %w: %w", err, ErrNotRepaired)
	}
	return after, nil
}

// compare returns the losses from the old metadata to after, and whether they are complete.
func (m Metadata) compare(ctx context.Context, after contents) (lost []Loss, all bool, err error) {
	file, err := blockdev.OpenDirect(m.File)
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	metadata, err := thinmeta.OpenDamaged(file)
	if err != nil {
		return nil, false, ctx.Err() // the old metadata cannot be read
	}
	before, err := read(ctx, metadata)
	if err != nil {
		return nil, false, err
	}
	treeless := make(map[uint32]bool)
	if hasTree, err := metadata.Whole(ctx, 0, ^uint32(0)); err == nil {
		for id, has := range hasTree {
			treeless[id] = !has
		}
	}
	_, superblockErr := thinmeta.Open(file)
	lost, all = losses(before, after, treeless, superblockErr == nil)
	return lost, all, ctx.Err()
}

// replace backs up the metadata, and renames the new file into its place.
func (m Metadata) replace(ctx context.Context, made, backup string) (string, error) {
	tag, err := tagOf(made)
	if err != nil {
		return "", err
	}
	backup += "-" + tag
	temporary := m.File + copySuffix
	defer func() { _ = remove(temporary) }()
	if err := errors.Join(syncFile(made), copySparse(ctx, m.File, temporary), syncFile(temporary)); err != nil {
		return "", fmt.Errorf("back up %s: %w", m.File, err)
	}
	if err := errors.Join(os.Rename(temporary, backup), syncFile(filepath.Dir(m.File))); err != nil {
		return "", fmt.Errorf("back up %s: %w", m.File, err)
	}
	if err := ctx.Err(); err != nil {
		return backup, err
	}
	if err := os.Rename(made, m.File); err != nil {
		return backup, fmt.Errorf("replace the metadata: %w", err)
	}
	return backup, syncFile(filepath.Dir(m.File))
}

// clean removes the unfinished files of an interrupted repair.
func (m Metadata) clean() error {
	return errors.Join(remove(m.File+newSuffix), remove(m.File+copySuffix))
}
