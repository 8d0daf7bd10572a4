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
// not overwrite the snapshot's blocks.
func (p *Pool) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) (err error) {
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
)

// Volumes returns the ids from first to last that have a volume in the pool, and whether each volume
// is whole; one that is not must not be deleted ([thinmeta.Metadata.Whole]). It reads the last
// commit and changes nothing. Its time grows with the number of ids, not of volumes.
func (p *Pool) Volumes(ctx context.Context, first, last thin.ID) (map[thin.ID]bool, error) {
	path, err := p.metadataPath()
	if err != nil {
		return nil, err
	}
	dev, err := blockdev.OpenDirect(path)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	for range committedTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		metadata, err := thinmeta.Open(dev)
		if err != nil {
			return nil, fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
		}
		volumes, readErr := metadata.Whole(ctx, uint32(first), uint32(last))
		current, err := metadata.Current()
		if err != nil {
			return nil, fmt.Errorf("read the metadata of pool %s: %w", p.name, err)
		}
		if !current {
			time.Sleep(committedPause)
			continue
		}
		if readErr != nil {
			return nil, fmt.Errorf("read the metadata of pool %s: %w", p.name, readErr)
		}
		byID := make(map[thin.ID]bool, len(volumes))
		for id, whole := range volumes {
			byID[thin.ID(id)] = whole
		}
		return byID, nil
	}
	return nil, fmt.Errorf("read the metadata of pool %s: it changes too often", p.name)
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
