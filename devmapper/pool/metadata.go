package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	dev, err := blockdev.OpenDirect(p.backing.MetadataPath)
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
