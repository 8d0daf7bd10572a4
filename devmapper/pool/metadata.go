package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrMetadataSnapshot is returned when the pool has a metadata snapshot, made by another program or
// left by a crash. A pool can have only one.
var ErrMetadataSnapshot = errors.New("the pool has a metadata snapshot already")

// ReadMetadata calls read with a snapshot of the pool's metadata. Until read returns, the pool does
// not overwrite the snapshot's blocks. If there is a snapshot already, it waits half a second for
// that to be released, as those of Volumes and Writes are.
func (p *Pool) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	for tries := 0; ; tries++ {
		err := p.readSnapshot(ctx, read)
		if !errors.Is(err, ErrMetadataSnapshot) || tries == committedTries {
			return err
		}
		time.Sleep(committedPause)
	}
}

// readSnapshot is ReadMetadata without the wait.
func (p *Pool) readSnapshot(ctx context.Context, read func(*thinmeta.Metadata) error) (err error) {
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
	path, err := p.metadataPath()
	if err != nil {
		return err
	}
	dev, err := blockdev.OpenDirect(path)
	if err != nil {
		return err
	}
	defer dev.Close()
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
	// committedAlone is the number of tries without a metadata snapshot, of which a pool has one at
	// most: `thinsnap check` needs it.
	committedAlone = 3
)

// Volumes returns the ids from first to last that have a volume in the pool, and whether each volume
// is whole; one that is not must not be deleted ([thinmeta.Metadata.Whole]). It reads the last
// commit. Its time grows with the number of ids, not of volumes.
func (p *Pool) Volumes(ctx context.Context, first, last thin.ID) (map[thin.ID]bool, error) {
	byID := make(map[thin.ID]bool)
	err := p.readCommitted(ctx, func(metadata *thinmeta.Metadata) error {
		clear(byID)
		volumes, err := metadata.Whole(ctx, uint32(first), uint32(last))
		for id, whole := range volumes {
			byID[thin.ID(id)] = whole
		}
		return err
	})
	return byID, err
}

// Writes returns what was written to a volume until now; thin.ErrNoDevice if there is no such
// volume. Its time grows with the blocks that the volume maps.
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

// readCommitted calls read with the metadata of the last commit. If the pool commits meanwhile, it
// calls read again, and in the end with a metadata snapshot, which does not change.
func (p *Pool) readCommitted(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	path, err := p.metadataPath()
	if err != nil {
		return err
	}
	dev, err := blockdev.OpenDirect(path)
	if err != nil {
		return err
	}
	defer dev.Close()
	for tries := range committedTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if tries >= committedAlone {
			if err := p.readSnapshot(ctx, read); !errors.Is(err, ErrMetadataSnapshot) {
				return err
			}
		}
		metadata, err := thinmeta.Open(dev)
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

// ReleaseMetadata releases a metadata snapshot that a crash has left. Its readers, if there are any,
// read garbage from then on.
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
