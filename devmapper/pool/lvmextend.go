package pool

import (
	"context"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// extendLVM is Extend for a pool that LVM has made. It fails, and the device is as it
// was, if the volume group has less left.
func (p *Pool) extendLVM(ctx context.Context, dataBytes, metadataBytes uint64) error {
	if err := p.lvextend(ctx, "--poolmetadatasize", p.backing.MetadataPath, metadataBytes); err != nil {
		return fmt.Errorf("extend the metadata of pool %s to %d bytes: %w", p.name, metadataBytes, err)
	}
	err := p.checkMetadataFor(dataBytes)
	if err == nil {
		err = p.lvextend(ctx, "--size", p.backing.DataPath, dataBytes)
	}
	if err != nil {
		return fmt.Errorf("extend the data of pool %s to %d bytes: %w", p.name, dataBytes, err)
	}
	return nil
}

// lvextend has LVM make one of the pool's devices so large, if it is smaller.
func (p *Pool) lvextend(ctx context.Context, option, device string, bytes uint64) error {
	if has, err := blockdev.Size(device); err != nil || has >= bytes {
		return err
	}
	return Step{Args: []string{"lvextend", "--yes", option, fmt.Sprintf("%db", bytes), p.lvm.volume(lvmPool)}}.do(ctx)
}

// vgFree returns how many bytes the pool's volume group has left.
func (p *Pool) vgFree(ctx context.Context) (uint64, error) {
	disks, err := pvs(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range disks {
		if p.lvm.made(d) {
			return d.VGFree, nil
		}
	}
	return 0, fmt.Errorf("LVM knows of no disk of the volume group %s: %w", p.lvm.Name, ErrWrongPool)
}

// Largest returns how large, in bytes, the data and the metadata could be, each for
// itself, with what is left below the pool: of the file system that the files lie on,
// or of the volume group, for which programs of LVM are run. It is ErrNotOurs of a pool
// that somebody else made.
func (p *Pool) Largest(ctx context.Context) (data, metadata uint64, err error) {
	if p.existing {
		return 0, 0, p.notOurs()
	}
	status, err := p.Status(ctx)
	if err != nil {
		return 0, 0, err
	}
	if p.lvm == nil {
		dataLeft, err := diskLeft(p.backing.DataFile)
		if err != nil {
			return 0, 0, err
		}
		metadataLeft, err := diskLeft(p.backing.MetadataFile)
		// The files are sparse: what they have not in use they take of that disk, too.
		return status.Data.Used + dataLeft, status.Metadata.Used + metadataLeft, err
	}
	free, err := p.vgFree(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("look for space for pool %s: %w", p.name, err)
	}
	if data, err = blockdev.Size(p.backing.DataPath); err != nil {
		return 0, 0, err
	}
	if metadata, err = blockdev.Size(p.backing.MetadataPath); err != nil {
		return 0, 0, err
	}
	return data + free, metadata + free, nil
}
