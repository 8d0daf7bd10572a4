package pool

import (
	"context"
	"errors"
	"fmt"
)

// ErrNotLVM is returned for a pool that LVM has not made.
var ErrNotLVM = errors.New("LVM has not made this pool")

// ExtendByPolicy has LVM extend the data and the metadata of a pool that it has
// made, where they are fuller than the pool's profile says, from what its volume
// group has left. Where they are not it does nothing.
func (p *Pool) ExtendByPolicy(ctx context.Context) error {
	if p.lvm == nil {
		return fmt.Errorf("extend pool %s: %w", p.name, ErrNotLVM)
	}
	return p.extend(ctx, "--use-policies")
}

// Extend has LVM extend a pool that it has made by so many bytes of data and of
// metadata, each rounded up to whole extents of the volume group; 0 leaves it as
// it is. It fails, and the pool is as it was, if the volume group has less left.
func (p *Pool) Extend(ctx context.Context, dataBytes, metadataBytes uint64) error {
	if p.lvm == nil {
		return fmt.Errorf("extend pool %s: %w", p.name, ErrNotLVM)
	}
	if metadataBytes > 0 {
		if err := p.extend(ctx, "--poolmetadatasize", fmt.Sprintf("+%db", metadataBytes)); err != nil {
			return err
		}
	}
	if dataBytes > 0 {
		return p.extend(ctx, "--size", fmt.Sprintf("+%db", dataBytes))
	}
	return nil
}

func (p *Pool) extend(ctx context.Context, how ...string) error {
	args := append(append([]string{"lvextend", "--yes"}, how...), p.lvm.volume(lvmPool))
	if err := (Step{Args: args}).do(ctx); err != nil {
		return fmt.Errorf("extend pool %s: %w", p.name, err)
	}
	return nil
}
