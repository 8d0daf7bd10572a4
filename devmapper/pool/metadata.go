package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrMetadataSnapshot is returned when the pool already has a metadata snapshot, which another
// program made or a crash left. A pool can have only one.
var ErrMetadataSnapshot = errors.New("the pool already has a metadata snapshot")

// ErrMetadataShort is returned when the metadata is nearly full: while a metadata snapshot exists,
// each changed block needs another one.
var ErrMetadataShort = errors.New("too little space is left in the pool's metadata for a metadata snapshot")

// ReadMetadata calls read with a snapshot of the pool's metadata. Until read returns, the pool does
// not overwrite the snapshot's blocks. If the pool already has a snapshot, such as that of Volumes
// or Writes, it waits half a second for its release.
//
// read may take long. When nine tenths of the metadata are used, its reads return ErrMetadataShort.
func (p *Pool) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	dev, err := p.openMetadata()
	if err != nil {
		return err
	}
	defer dev.Close()
	guarded := &guardedReader{ReaderAt: dev, guard: func() error { return p.requireMetadataSpace(ctx) }}
	for tries := 0; ; tries++ {
		err := p.requireMetadataSpace(ctx)
		if err == nil {
			err = p.readSnapshot(ctx, guarded, read)
		}
		if !errors.Is(err, ErrMetadataSnapshot) || tries == committedTries {
			return err
		}
		time.Sleep(committedPause)
	}
}

// requireMetadataSpace returns ErrMetadataShort when nine tenths of the metadata are used,
// including the kernel's own reserve.
func (p *Pool) requireMetadataSpace(ctx context.Context) error {
	status, err := p.Status(ctx)
	if err == nil && status.Metadata.Total-status.Metadata.Used < status.Metadata.Total/10 {
		err = fmt.Errorf("pool %s: %w", p.name, ErrMetadataShort)
	}
	return err
}

// guardedReader calls guard once in guardedBlocks reads.
type guardedReader struct {
	io.ReaderAt
	guard func() error
	reads int
}

const guardedBlocks = 256

func (r *guardedReader) ReadAt(b []byte, offset int64) (int, error) {
	if r.reads++; r.reads%guardedBlocks == 0 {
		if err := r.guard(); err != nil {
			return 0, err
		}
	}
	return r.ReaderAt.ReadAt(b, offset)
}

// readSnapshot is ReadMetadata without the wait, on an open reader of the pool's metadata.
func (p *Pool) readSnapshot(ctx context.Context, dev io.ReaderAt, read func(*thinmeta.Metadata) error) (err error) {
	status, err := p.Status(ctx)
	if err != nil {
		return err
	}
	if status.HeldRoot != 0 {
		return fmt.Errorf("pool %s: %w", p.name, ErrMetadataSnapshot)
	}
	if err := p.thin.ReserveMetadataSnap(); err != nil {
		if errors.Is(err, thin.ErrBusy) {
			err = errors.Join(err, ErrMetadataSnapshot)
		}
		return err
	}
	defer func() { err = errors.Join(err, p.thin.ReleaseMetadataSnap()) }()
	if status, err = p.Status(ctx); err != nil {
		return err
	}
	metadata, err := thinmeta.OpenSnapshot(dev, status.HeldRoot)
	if err != nil {
		return fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
	}
	return read(metadata)
}

const (
	// A pool commits once a second while it is written to (COMMIT_PERIOD of drivers/md/dm-thin.c),
	// and at each message that changes it.
	committedTries = 50
	committedPause = 10 * time.Millisecond
	// triesWithoutSnapshot is the number of tries before one with a metadata snapshot. A pool has
	// at most one, and `thinsnap check` needs it.
	triesWithoutSnapshot = 3
)

// Volumes returns the ids from first to last that have a volume in the pool, and whether each
// volume has a mapping tree. One without must not be deleted ([thinmeta.Metadata.Whole]). It
// reads the last commit. Its time grows with the number of volumes in the range, not in the pool.
func (p *Pool) Volumes(ctx context.Context, first, last thin.ID) (map[thin.ID]bool, error) {
	byID := make(map[thin.ID]bool)
	err := p.readCommitted(ctx, func(metadata *thinmeta.Metadata) error {
		clear(byID)
		volumes, err := metadata.Whole(ctx, uint32(first), uint32(last))
		for id, hasTree := range volumes {
			byID[thin.ID(id)] = hasTree
		}
		return err
	})
	return byID, err
}

// Writes makes the pool commit, and describes the writes to a volume until then. It returns
// thin.ErrNoDevice if there is no such volume. Its time grows with the blocks that the volume maps.
func (p *Pool) Writes(ctx context.Context, id thin.ID) (writes thinmeta.Writes, err error) {
	if err := p.Commit(ctx); err != nil {
		return writes, err
	}
	err = p.readCommitted(ctx, func(metadata *thinmeta.Metadata) (err error) {
		writes, err = metadata.Writes(ctx, uint32(id))
		return err
	})
	if errors.Is(err, thinmeta.ErrNoDevice) {
		err = fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	}
	return writes, err
}

// Twins returns the other volumes with exactly the mappings of a volume at the last commit
// ([thinmeta.Metadata.Twins]), or thin.ErrNoDevice if there is no such volume. Its time grows with
// the number of volumes.
func (p *Pool) Twins(ctx context.Context, id thin.ID) (twins []thin.ID, err error) {
	err = p.readCommitted(ctx, func(metadata *thinmeta.Metadata) error {
		twins = nil
		ids, err := metadata.Twins(ctx, uint32(id))
		for _, twin := range ids {
			twins = append(twins, thin.ID(twin))
		}
		return err
	})
	if errors.Is(err, thinmeta.ErrNoDevice) {
		err = fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	}
	return twins, err
}

// Time returns the pool's time at the last commit: the number of snapshots ever created in it, by
// any user. It must not exceed [thinmeta.MaxTime].
func (p *Pool) Time(ctx context.Context) (time uint32, err error) {
	superblock, err := p.Committed(ctx)
	return superblock.Time, err
}

// Committed returns the superblock of the last commit. Each commit changes it.
func (p *Pool) Committed(ctx context.Context) (thinmeta.Superblock, error) {
	if err := ctx.Err(); err != nil {
		return thinmeta.Superblock{}, err
	}
	dev, err := p.openMetadata()
	if err != nil {
		return thinmeta.Superblock{}, err
	}
	defer dev.Close()
	// The superblock is one block, which does not change during the read.
	metadata, err := thinmeta.Open(dev)
	if err != nil {
		return thinmeta.Superblock{}, fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
	}
	return metadata.Superblock(), nil
}

func (p *Pool) openMetadata() (*blockdev.Direct, error) {
	path, err := p.metadataPath()
	if err != nil {
		return nil, err
	}
	return blockdev.OpenDirect(path)
}

// readCommitted calls read with the metadata of the last commit. If the pool commits meanwhile, it
// calls read again, and finally with a metadata snapshot, which does not change.
func (p *Pool) readCommitted(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	dev, err := p.openMetadata()
	if err != nil {
		return err
	}
	defer dev.Close()
	return p.readCommittedOn(ctx, dev, read)
}

// readCommittedOn is readCommitted on an open reader of the pool's metadata.
func (p *Pool) readCommittedOn(ctx context.Context, dev io.ReaderAt, read func(*thinmeta.Metadata) error) error {
	for tries := range committedTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if tries >= triesWithoutSnapshot {
			if err := p.readSnapshot(ctx, dev, read); !errors.Is(err, ErrMetadataSnapshot) {
				return err
			}
		}
		metadata, err := thinmeta.Open(&keepingReader{ReaderAt: dev, limit: keptBlocks})
		if err != nil {
			return fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
		}
		readErr := read(metadata)
		current, err := metadata.Current()
		if err != nil {
			return fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
		}
		if !current {
			time.Sleep(committedPause)
			continue
		}
		if readErr != nil {
			return fmt.Errorf("read the metadata of pool %s: %w", p.name, readErr)
		}
		return nil
	}
	return fmt.Errorf("read the metadata of pool %s: it changes too often, and another program has its metadata "+
		"snapshot: %w", p.name, ErrMetadataSnapshot)
}

// ReleaseMetadata releases a metadata snapshot that a crash left. A program that still reads the
// snapshot reads garbage from then on.
func (p *Pool) ReleaseMetadata(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.thin.ReleaseMetadataSnap()
}

// ReadMetadata calls read with the metadata of a pool that is not in the kernel.
func (s LoopSpec) ReadMetadata(read func(*thinmeta.Metadata) error) error {
	// Through the page cache: nothing writes to the file directly, and tmpfs has no direct I/O.
	file, err := os.OpenFile(s.MetadataFile, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	metadata, err := thinmeta.Open(file)
	if err != nil {
		return fmt.Errorf("read the metadata of pool %s in %s: %w", s.Name, s.MetadataFile, err)
	}
	return read(metadata)
}
