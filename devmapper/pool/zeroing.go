package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// ZeroNewBlocks has a foreign pool zero the blocks that it hands out from now on, if it does not, with
// its owner's consent. LVM is told to; another pool gets its table without skip_block_zeroing, which
// lasts until the owner loads the old one. The pool's data is not written: blocks that volumes have
// already stay as they are.
//
// It is devmapper.ErrNotFound if the pool is not active. The pool is not left suspended, also if the
// process is killed. The kernel refuses a new table only if a device below has changed.
func (s ExistingSpec) ZeroNewBlocks(ctx context.Context, control *devmapper.Control) error {
	dev, err := s.Find(control)
	if err != nil {
		return fmt.Errorf("pool %s: %w", s.Device, err)
	}
	name := handle(dev)
	_, targets, err := control.Table(name)
	if err != nil {
		return err
	}
	if len(targets) != 1 || targets[0].Type != thin.PoolType {
		return fmt.Errorf("device %s is no thin pool: %w", dev.Name, ErrWrongPool)
	}
	table, err := thin.ParsePoolTable(targets[0].Params)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev.Name, err)
	}
	if !table.SkipBlockZeroing {
		return nil
	}
	log.G(ctx).WithField("pool", dev.Name).Info("having the pool zero new blocks")
	s.UUID = dev.UUID
	if volume, isLVM := s.volume(); isLVM {
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
		// The pool must not stay suspended, with its old table.
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

// Resume resumes a foreign pool that a killed ZeroNewBlocks, or LVM's program that it ran, has left
// suspended. It does nothing to a pool that is not suspended, not active, or another one in its place.
func (s ExistingSpec) Resume(control *devmapper.Control) error {
	dev, err := s.Find(control)
	if errors.Is(err, devmapper.ErrNotFound) || errors.Is(err, ErrWrongPool) || err == nil && !dev.Suspended {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pool %s: %w", s.Device, err)
	}
	_, err = control.Resume(handle(dev))
	return err
}

// handle is a name for a device that stays with it.
func handle(dev devmapper.Device) string {
	if dev.UUID == "" {
		return dev.Name
	}
	return devmapper.ByUUID(dev.UUID)
}
