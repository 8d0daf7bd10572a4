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

// ErrMetadataSnapshot is returned when the pool has a metadata snapshot that somebody else has made, or that a crash has
// left: there can be one at a time.
var ErrMetadataSnapshot = errors.New("the pool has a metadata snapshot already")

// ReadMetadata calls read with the pool's metadata as it is at this moment, and lets go of it when read returns; until
// then the pool writes to new blocks of metadata only.
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
	// A pool commits once a second while it is written to (COMMIT_PERIOD of
	// drivers/md/dm-thin.c), and at every change that is asked of it.
	committedTries = 50
	committedPause = 10 * time.Millisecond
)

// Volumes tells for each id from first to last of which the pool has a volume whether that is whole; one that is not
// must not be deleted ([thinmeta.Metadata.Whole]). It reads what the pool committed last, changes nothing, and takes the
// longer the more ids it is asked for, not the more volumes there are.
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
	return nil, fmt.Errorf("read the metadata of pool %s: it changes all the time", p.name)
}

// ReleaseMetadata gives up a metadata snapshot that a crash has left. Whoever is reading it reads nonsense from then on.
func (p *Pool) ReleaseMetadata(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.thin.ReleaseMetadataSnap()
}

// ReadMetadataFile calls read with the metadata of a loop pool that is not in the kernel.
func ReadMetadataFile(spec LoopSpec, read func(*thinmeta.Metadata) error) error {
	// Nobody writes to it behind the page cache's back, and tmpfs has no direct I/O.
	file, err := os.OpenFile(spec.MetadataFile, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	metadata, err := thinmeta.Open(file)
	if err != nil {
		return fmt.Errorf("read the metadata of pool %s in %s: %w", spec.Name, spec.MetadataFile, err)
	}
	return read(metadata)
}
