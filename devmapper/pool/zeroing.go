package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// ZeroNewBlocks makes a foreign pool zero new blocks, with its owner's consent. For an LVM pool it
// runs LVM. Another pool gets its table without skip_block_zeroing, which lasts until the owner
// loads the old table. Blocks that volumes already have stay as they are.
//
// It returns devmapper.ErrNotFound if the pool is not active. The kernel refuses the table only if
// a device below has changed, and then leaves the pool suspended until ZeroNewBlocks loads the old
// table. If the process is killed in between, the pool stays suspended; see Resume.
func (s ExistingSpec) ZeroNewBlocks(ctx context.Context, control *devmapper.Control) error {
	dev, err := s.Find(control)
	if err != nil {
		return fmt.Errorf("pool %s: %w", s.Device, err)
	}
	name := stableName(dev)
	_, targets, err := control.Table(name)
	if err != nil {
		return err
	}
	if len(targets) != 1 || targets[0].Type != thin.PoolType {
		return fmt.Errorf("device %s is not a thin pool: %w", dev.Name, ErrWrongPool)
	}
	table, err := thin.ParsePoolTable(targets[0].Params)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev.Name, err)
	}
	if !table.SkipBlockZeroing {
		return nil
	}
	log.G(ctx).WithField("pool", dev.Name).Info("making the pool zero new blocks")
	s.UUID = dev.UUID
	if volume, isLVM := s.vgLV(); isLVM {
		devices, err := s.lvmDevices(ctx)
		if err != nil {
			return err
		}
		return Step{Args: []string{"lvchange", "--yes", "--zero", "y", volume}, devices: devices}.do(ctx)
	}
	table.SkipBlockZeroing = false
	target, err := table.Target(targets[0].Length)
	if err != nil {
		return err
	}
	if err := load(control, name, target); err != nil {
		// The kernel leaves a pool suspended whose new table it refuses.
		return errors.Join(err, load(control, name, targets[0]))
	}
	return nil
}

// load makes target the table of a pool.
func load(control *devmapper.Control, name string, target devmapper.Target) error {
	if _, err := control.Load(name, []devmapper.Target{target}, false); err != nil {
		return err
	}
	// gofail: var adoptAfterLoadPool struct{}
	_, err := control.Exchange(name, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	return err
}

// Resume resumes a foreign pool that a killed ZeroNewBlocks, or the LVM program that it ran, left
// suspended. It does nothing if the pool is not suspended or not active, or if another pool has its
// name.
func (s ExistingSpec) Resume(control *devmapper.Control) error {
	dev, err := s.Find(control)
	if errors.Is(err, devmapper.ErrNotFound) || errors.Is(err, ErrWrongPool) || err == nil && !dev.Suspended {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pool %s: %w", s.Device, err)
	}
	_, err = control.Resume(stableName(dev))
	return err
}

// stableName returns a name for a device that stays valid if the device is renamed.
func stableName(dev devmapper.Device) string {
	if dev.UUID == "" {
		return dev.Name
	}
	return devmapper.ByUUID(dev.UUID)
}
