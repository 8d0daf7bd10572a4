package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Do does it: it makes new metadata of the old, looks whether that is fit, keeps a copy of the old beside it, and
// then puts the new in its place. If it fails, or is killed, before that last step, the metadata is as it was.
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
		return o, fmt.Errorf("compare %s with what is to take its place: %w", m.File, err)
	}
	o.Backup, err = m.replace(ctx, made, p.backup)
	return o, err
}

// make writes metadata that is fit to take the old one's place, and returns what is in it.
func (p Plan) make(ctx context.Context, made string, o *Outcome) (contents, error) {
	m := p.metadata
	if p.unsealed {
		after, err := m.makeSealed(ctx, made, o)
		if err == nil || !errors.Is(err, ErrNotSaved) {
			return after, err
		}
		log.G(ctx).WithError(err).Info("not only the checksum of the superblock is wrong")
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
	log.G(ctx).WithField("file", m.File).Info("having thin_repair write the pool's metadata anew")
	if _, err := run(ctx, p.rewrite...); err != nil {
		return contents{}, fmt.Errorf("%w: %w", err, ErrNotSaved)
	}
	return m.verify(ctx, made, o)
}

// makeSealed makes a copy whose superblock has the right checksum. If the trees to which that leads, and what it counts,
// are in order, it is as it was.
func (m Metadata) makeSealed(ctx context.Context, made string, o *Outcome) (contents, error) {
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
		return contents{}, fmt.Errorf("%w: %w", err, ErrNotSaved)
	}
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, sum), 0); err != nil {
		return contents{}, err
	}
	metadata, err := thinmeta.Open(f)
	if err != nil {
		return contents{}, fmt.Errorf("%w: %w", err, ErrNotSaved)
	}
	if metadata.Superblock().HeldRoot != 0 {
		return contents{}, fmt.Errorf("the superblock has a metadata snapshot, and cannot be believed: %w", ErrNotSaved)
	}
	return m.verify(ctx, made, o)
}

// verify sees that thin_check finds nothing wrong in what was made, and that it is of this pool.
func (m Metadata) verify(ctx context.Context, made string, o *Outcome) (after contents, err error) {
	if o.Report, err = check(ctx, made, "--clear-needs-check-flag"); err != nil {
		return after, err
	}
	o.Report.Path = m.File
	if !o.Report.Good() {
		return after, fmt.Errorf("thin_check does not take what was made of it: %s: %w", strings.Join(o.Report.Complaints, ", "), ErrNotSaved)
	}
	file, err := blockdev.OpenDirect(made)
	if err != nil {
		return after, err
	}
	defer file.Close()
	metadata, err := thinmeta.Open(file)
	if err != nil {
		return after, fmt.Errorf("%w: %w", err, ErrNotSaved)
	}
	if after, err = read(ctx, metadata); err != nil {
		return after, err
	}
	sb := metadata.Superblock()
	switch {
	case uint64(sb.DataBlockSectors)*devmapper.SectorBytes != m.BlockBytes:
		err = fmt.Errorf("it has blocks of %d bytes, and the pool of %d", sb.DataBlockSectors*devmapper.SectorBytes, m.BlockBytes)
	case sb.TransactionID != m.TransactionID && sb.TransactionID+1 != m.TransactionID:
		err = fmt.Errorf("its transaction id is %d, and the pool's is %d: they are not of the same moment", sb.TransactionID, m.TransactionID)
	case after.time > sb.Time:
		// The kernel would take blocks for a volume's own that others share.
		err = fmt.Errorf("it is of the time %d, and something in it of %d", sb.Time, after.time)
	case len(after.volumes) == 0 && m.Used:
		err = errors.New("there is not one volume in it")
	}
	if err != nil {
		return after, fmt.Errorf("what was made of it is not fit: %w: %w", err, ErrNotSaved)
	}
	return after, nil
}

// compare sees what the metadata had that is not in after, and whether that is all.
func (m Metadata) compare(ctx context.Context, after contents) (lost []Loss, all bool, err error) {
	file, err := blockdev.OpenDirect(m.File)
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	metadata, err := thinmeta.OpenDamaged(file)
	if err != nil {
		return nil, false, ctx.Err() // there is nothing to compare with
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
	_, sealedErr := thinmeta.Open(file)
	lost, all = losses(before, after, treeless, sealedErr == nil)
	return lost, all, ctx.Err()
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
