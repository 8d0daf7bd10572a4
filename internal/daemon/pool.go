package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

func loopConfig(c config.Config) snapshotter.LoopConfig {
	return snapshotter.LoopConfig{
		Dir:           filepath.Join(c.Root, "pool"),
		Name:          c.Pool.Name,
		BlockBytes:    uint64(c.Pool.BlockSize),
		DataBytes:     uint64(c.Pool.Loop.DataSize),
		MetadataBytes: uint64(c.Pool.Loop.MetadataSize),
		// With a threshold of 100 the kernel's event is for whoever watches the pool.
		LowWaterPercent: 100 - uint64(c.Pool.AutoextendThreshold),
	}
}

func directLVMConfig(c config.Config) snapshotter.DirectLVMConfig {
	return snapshotter.DirectLVMConfig{
		Name:            c.Pool.Name,
		BlockBytes:      uint64(c.Pool.BlockSize),
		Device:          c.Pool.DirectLVM.Device,
		DataPercent:     uint64(c.Pool.DirectLVM.ThinpPercent),
		MetadataPercent: uint64(c.Pool.DirectLVM.ThinpMetapercent),
		Threshold:       uint64(c.Pool.AutoextendThreshold),
		ExtendPercent:   uint64(c.Pool.AutoextendPercent),
		Force:           c.Pool.DirectLVM.Force,
	}
}

func existingConfig(c config.Config) snapshotter.ExistingConfig {
	return snapshotter.ExistingConfig{Name: c.Pool.Name, Device: c.Pool.Existing.Device}
}

// CreatePool makes the pool of a root whose daemon is not running, and describes
// it. A pool that is there already is errdefs.ErrAlreadyExists.
func CreatePool(ctx context.Context, c config.Config) (_ admin.Pool, err error) {
	d, err := openRoot(c)
	if err != nil {
		return admin.Pool{}, err
	}
	defer func() { err = errors.Join(err, d.closeRoot()) }()
	if err := requireNoPool(ctx, c, d.store); err != nil {
		return admin.Pool{}, err
	}
	if err := d.openPool(ctx); err != nil {
		return admin.Pool{}, err
	}
	return d.Pool(ctx)
}

// PlanPool returns what CreatePool would do, as lines of shell, and its refusals. It changes nothing.
func PlanPool(ctx context.Context, c config.Config) (_ []string, err error) {
	store, err := metadata.Open(storePath(c), metadata.Options{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		store, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
		if err := requireNoPool(ctx, c, store); err != nil {
			return nil, err
		}
	}
	switch c.Pool.Mode {
	case config.ModeDirectLVM:
		return snapshotter.PlanDirectLVMPool(ctx, store, directLVMConfig(c))
	case config.ModeExisting:
		control, err := devmapper.Open()
		if err != nil {
			return nil, err
		}
		lines, err := snapshotter.PlanExistingPool(ctx, store, control, existingConfig(c))
		return lines, errors.Join(err, control.Close())
	}
	return snapshotter.PlanLoopPool(ctx, store, loopConfig(c))
}

// requireNoPool refuses a root that has a whole pool.
func requireNoPool(ctx context.Context, c config.Config, store *metadata.Store) error {
	var rec metadata.PoolRecord
	err := store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Pool()
		return err
	})
	switch {
	case err == nil && rec.Formed:
		return fmt.Errorf("the root %s has pool %s: %w", c.Root, rec.Name, errdefs.ErrAlreadyExists)
	case err != nil && !errdefs.IsNotFound(err):
		return err
	}
	return nil
}

// RecordedPool returns what DestroyPool would remove: what the store of a root whose daemon is not running knows of its pool. The
// record is blank if that is nothing. A root without a store is errdefs.ErrNotFound.
func RecordedPool(ctx context.Context, c config.Config) (rec metadata.PoolRecord, err error) {
	store, err := metadata.Open(storePath(c), metadata.Options{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return rec, noPool(c)
	}
	if err != nil {
		return rec, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	err = store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Pool()
		return err
	})
	if errdefs.IsNotFound(err) {
		err = nil
	}
	return rec, err
}

func noPool(c config.Config) error {
	return fmt.Errorf("the root %s has no pool: %w", c.Root, errdefs.ErrNotFound)
}

// DestroyPool removes the pool of a root whose daemon is not running, with every
// snapshot in it, and the store; of a pool that somebody else made only what is ours in it. A pool that is in use is errdefs.ErrUnavailable,
// and stays as it is.
func DestroyPool(ctx context.Context, c config.Config) error {
	if _, err := os.Stat(storePath(c)); errors.Is(err, os.ErrNotExist) {
		return noPool(c)
	}
	d, err := openRoot(c)
	if err != nil {
		return err
	}
	if err = unshareAll(mountDir(c)); err == nil {
		err = snapshotter.DestroyPool(ctx, d.store, d.control)
	}
	if errdefs.IsNotFound(err) {
		err = nil // there is a store, but there never was a pool
	}
	// The store goes last: as long as it is there, this can be called again.
	if err := errors.Join(err, d.closeRoot()); err != nil {
		return err
	}
	// gofail: var beforeRemoveStore struct{}
	return os.Remove(storePath(c))
}

// unshareAll gives up the mounts that a snapshotter has left.
func unshareAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		err = errors.Join(err, filesystem.Unshare(filepath.Join(dir, entry.Name())))
	}
	return err
}
