package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// table returns the pool's live table, having seen that it is one of such a pool.
func (p *Pool) table() (thin.PoolTable, error) {
	table, err := livePoolTable(p.control, p.device)
	if err != nil {
		return thin.PoolTable{}, err
	}
	if got := uint64(table.BlockSectors) * SectorBytes; got != p.blockBytes {
		return thin.PoolTable{}, fmt.Errorf("blocks of %d bytes where %d were expected: %w", got, p.blockBytes, ErrWrongPool)
	}
	return table, nil
}

func livePoolTable(control *devmapper.Control, device string) (thin.PoolTable, error) {
	dev, targets, err := control.Table(device)
	if err != nil {
		return thin.PoolTable{}, err
	}
	if len(targets) != 1 || targets[0].Type != thin.PoolType {
		return thin.PoolTable{}, fmt.Errorf("device %s is no thin pool: %w", dev.Name, ErrWrongPool)
	}
	return thin.ParsePoolTable(targets[0].Params)
}

// Close takes every volume of the pool, and the pool itself, unless somebody else made
// it, out of the kernel. It returns devmapper.ErrBusy while a volume is open. What the
// pool lies on stays.
func (p *Pool) Close(ctx context.Context) error {
	volumes, err := p.Active(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := p.Deactivate(ctx, v.ID); err != nil {
			return fmt.Errorf("deactivate volume %d of pool %s: %w", v.ID, p.name, err)
		}
	}
	switch {
	case p.existing:
	case p.lvm != nil:
		err = p.lvm.deactivate(ctx)
	default:
		err = p.control.Deactivate(p.device)
	}
	if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return fmt.Errorf("deactivate pool %s: %w", p.name, err)
	}
	return nil
}
