package adopt

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
)

// A machine has the parts of an adoption that need the kernel. Tests replace it.
type machine interface {
	// plan is plan.Make.
	plan(ctx context.Context, o plan.Options) (plan.Plan, error)
	// lock keeps other thinsnap processes from the pool of a store until close.
	lock(ctx context.Context, store *metadata.Store) error
	// resume resumes the pool if a run was killed in zero and left it suspended.
	resume(p Pool) error
	// idle reads the mapped devices with the given names, and leaves out those that do not exist.
	idle(names []string) ([]IdleDevice, error)
	// deactivate removes the mapped devices that exist.
	deactivate(devices []IdleDevice) error
	// activate undoes deactivate if the pool is active, and returns the devices that it could not
	// activate, with the reasons.
	activate(p Pool, devices []IdleDevice) (failed []string)
	// zero makes the pool zero new blocks.
	zero(ctx context.Context, p Pool) error
	// withdraw is provision.Withdraw.
	withdraw(ctx context.Context, store *metadata.Store) error
	close() error
}

// host is the machine on which the program runs.
type host struct{ control *devmapper.Control }

func (host) plan(ctx context.Context, o plan.Options) (plan.Plan, error) { return plan.Make(ctx, o) }

func (h host) lock(ctx context.Context, store *metadata.Store) error {
	stored, err := provision.Read(ctx, store)
	if err != nil {
		return err
	}
	return stored.Lock(h.control)
}

func (h host) resume(p Pool) error { return p.spec().Resume(h.control) }

func (h host) zero(ctx context.Context, p Pool) error {
	err := p.spec().ZeroNewBlocks(ctx, h.control)
	switch {
	case errors.Is(err, devmapper.ErrNotFound):
		err = fmt.Errorf("%w: activate the pool: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, pool.ErrWrongPool):
		err = fmt.Errorf("%w: activate the pool that has the snapshots, under its name; if that pool is lost, so are "+
			"they: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

func (h host) withdraw(ctx context.Context, store *metadata.Store) error {
	return provision.Withdraw(ctx, store, h.control)
}

func (h host) idle(names []string) ([]IdleDevice, error) {
	var all []IdleDevice
	for _, name := range names {
		dev, targets, err := h.control.Table(name)
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d := IdleDevice{Name: name, ReadOnly: dev.ReadOnly}
		switch {
		case dev.UUID != "", len(targets) > 1, len(targets) == 1 && targets[0].Type != thin.Type:
			return nil, fmt.Errorf("device %s does not belong to containerd: %w", name, errdefs.ErrFailedPrecondition)
		case len(targets) == 1:
			d.Sectors = targets[0].Length
			if _, d.VolumeID, err = thin.ParseTarget(targets[0].Params); err != nil {
				return nil, fmt.Errorf("device %s: %w", name, err)
			}
		}
		all = append(all, d)
	}
	return all, nil
}

func (h host) deactivate(devices []IdleDevice) error {
	for _, d := range devices {
		now, err := h.idle([]string{d.Name})
		if err == nil && len(now) == 1 && now[0] != d {
			err = fmt.Errorf("the table of device %s has changed: %w", d.Name, errdefs.ErrFailedPrecondition)
		}
		if err == nil && len(now) == 1 {
			err = h.control.Deactivate(d.Name)
		}
		if errors.Is(err, devmapper.ErrBusy) {
			err = fmt.Errorf("%w: stop the process that uses it: %w", err, errdefs.ErrFailedPrecondition)
		}
		if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			return fmt.Errorf("deactivate device %s: %w", d.Name, err)
		}
	}
	return nil
}

func (h host) activate(p Pool, devices []IdleDevice) (failed []string) {
	dev, err := p.spec().Find(h.control)
	if err != nil {
		return nil
	}
	for _, d := range devices {
		if d.Sectors == 0 {
			continue // the built-in crashed before it loaded the table
		}
		target := thin.Target(dev.Number(), d.VolumeID, d.Sectors)
		_, err := h.control.Activate(d.Name, "", []devmapper.Target{target}, d.ReadOnly)
		if err != nil && !errors.Is(err, devmapper.ErrExists) {
			failed = append(failed, fmt.Sprintf("%s (%v)", d.Name, err))
		}
	}
	return failed
}

func (h host) close() error { return h.control.Close() }

// spec returns the pool's specification as a foreign pool.
func (p Pool) spec() pool.ExistingSpec {
	return pool.ExistingSpec{Device: p.MappedDevice, UUID: p.UUID, BlockBytes: p.BlockBytes}
}
