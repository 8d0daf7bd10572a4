package pool

import (
	"context"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// extend takes the space from the volume group, in whole extents. It fails, with the device
// unchanged, if the group has less.
func (b lvmBackend) extend(ctx context.Context, p *Pool, dataBytes, metadataBytes uint64) error {
	data, metadata, err := b.paths(p)
	if err != nil {
		return err
	}
	return p.extendDevices(dataBytes, metadataBytes,
		func() error { return b.lvextend(ctx, "--size", data, dataBytes) },
		func() error { return b.lvextend(ctx, "--poolmetadatasize", metadata, metadataBytes) })
}

// paths returns the nodes of the pool's devices.
func (lvmBackend) paths(p *Pool) (data, metadata string, err error) {
	live, err := p.live()
	if err != nil {
		return "", "", err
	}
	if data, err = blockdev.Path(live.table.Data); err != nil {
		return "", "", err
	}
	metadata, err = blockdev.Path(live.table.Metadata)
	return data, metadata, err
}

// lvextend makes one of the pool's devices at least the given size in bytes.
func (b lvmBackend) lvextend(ctx context.Context, option, device string, bytes uint64) error {
	if has, err := blockdev.Size(device); err != nil || has >= bytes {
		return err
	}
	err := Step{Args: []string{"lvextend", "--yes", option, fmt.Sprintf("%db", bytes), b.volume(lvmPool)}}.do(ctx)
	// lvextend refuses a device that dmeventd has extended meanwhile.
	if has, sizeErr := blockdev.Size(device); sizeErr == nil && has >= bytes {
		return nil
	}
	return err
}

func (b lvmBackend) largest(ctx context.Context, p *Pool) (data, metadata uint64, err error) {
	free, err := b.vgFree(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("look for space for pool %s: %w", p.name, err)
	}
	dataPath, metadataPath, err := b.paths(p)
	if err != nil {
		return 0, 0, err
	}
	if data, err = blockdev.Size(dataPath); err != nil {
		return 0, 0, err
	}
	if metadata, err = blockdev.Size(metadataPath); err != nil {
		return 0, 0, err
	}
	return data + free, metadata + free, nil
}

// vgFree returns the free bytes of the pool's volume group.
func (s LVMSpec) vgFree(ctx context.Context) (uint64, error) {
	disks, err := pvs(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range disks {
		if s.owns(d) {
			return d.VGFree, nil
		}
	}
	return 0, fmt.Errorf("LVM finds no disk of the volume group %s: %w", s.Name, ErrWrongPool)
}
