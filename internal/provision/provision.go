// Package provision makes, opens, plans, checks, repairs and destroys the pool recorded in a
// store. Each kind of pool is a Mode, in a file of its own.
package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// Open brings the pool recorded in store into the kernel, or makes the pool that c describes if
// the store records none. The record of a pool that is to be made is written first, so that a second
// call completes it after a crash; that of a foreign pool is written once the pool is open.
//
// It is errdefs.ErrFailedPrecondition, and has changed nothing, if c describes another pool than
// the recorded one, if the pool is not the recorded one, or if it cannot be made.
func Open(ctx context.Context, store *metadata.Store, control *devmapper.Control, c config.Config) (*pool.Pool, error) {
	mode, err := modeOf(c.Pool.Mode)
	if err != nil {
		return nil, err
	}
	rec, err := recorded(ctx, store)
	found := err == nil
	if errdefs.IsNotFound(err) {
		rec, err = mode.New(ctx, c)
		if err == nil && !rec.Complete {
			err = setPool(ctx, store, rec)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := same(mode, rec, c); err != nil {
		return nil, err
	}
	if err := lock(control, rec); err != nil {
		return nil, err
	}
	p, opened, err := mode.Open(ctx, control, rec, c)
	if err != nil || found && rec.Complete {
		return p, err
	}
	return p, setPool(ctx, store, opened)
}

// recorded returns the pool that store records, with absolute paths in the root that the store is in.
func recorded(ctx context.Context, store *metadata.Store) (metadata.PoolRecord, error) {
	rec, err := store.Pool(ctx)
	rec.Loop = inRoot(rec.Loop, filepath.Dir(store.Path()))
	return rec, err
}

// setPool stores a record, with paths that are relative to the root, so that the root can be moved.
func setPool(ctx context.Context, store *metadata.Store, rec metadata.PoolRecord) error {
	rec.Loop = relative(rec.Loop, filepath.Dir(store.Path()))
	return store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) })
}

// lock keeps every other process from using the pool as long as control is open. The root's lock does
// not keep a copy of the root from it.
func lock(control *devmapper.Control, rec metadata.PoolRecord) error {
	name := rec.ID
	if rec.Foreign() {
		name = cmp.Or(rec.Existing.UUID, rec.Existing.MappedDevice)
	}
	err := control.Lock(name)
	if errors.Is(err, devmapper.ErrLocked) {
		err = fmt.Errorf("pool %s is in use by another thinsnap, whose root is another one or a copy of this: %w: "+
			"stop one of the two: %w", rec.Name, err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Plan returns the shell commands by which Open would make the pool, and its refusals. It changes
// nothing, except that LVM activates an inactive pool in mode "existing". The store may be nil.
func Plan(ctx context.Context, store *metadata.Store, c config.Config) ([]string, error) {
	mode, err := modeOf(c.Pool.Mode)
	if err != nil {
		return nil, err
	}
	if store != nil {
		rec, err := recorded(ctx, store)
		if err == nil {
			if err := same(mode, rec, c); err != nil {
				return nil, err
			}
			return mode.Plan(ctx, rec, c)
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	rec, err := mode.New(ctx, c)
	if err != nil {
		return nil, err
	}
	return mode.Plan(ctx, rec, c)
}

// Destroy takes the pool recorded in store out of the kernel and removes it with every snapshot.
// From a foreign pool it removes the store's volumes only. It is errdefs.ErrUnavailable, and
// removes nothing, while a volume is in use. The caller removes the store.
func Destroy(ctx context.Context, store *metadata.Store, control *devmapper.Control) error {
	rec, err := recorded(ctx, store)
	if err == nil {
		var mode Mode
		if mode, err = modeOf(rec.Mode); err == nil {
			err = lock(control, rec)
		}
		if err == nil {
			err = mode.Destroy(ctx, store, control, rec)
		}
	}
	if err != nil {
		return fmt.Errorf("destroy the pool: %w", err)
	}
	return nil
}

// Destruction says what Destroy will remove and what it has removed, for the operator. It
// describes the recorded pool: the configuration may have changed since.
func Destruction(rec metadata.PoolRecord, c config.Config) (will, done string) {
	if rec.Mode == "" {
		return fmt.Sprintf("this removes the store in %s, which has no pool", c.Root),
			fmt.Sprintf("removed the store in %s, which had no pool", c.Root)
	}
	mode, err := modeOf(rec.Mode)
	if err != nil {
		return "this removes nothing: " + err.Error(), "removed nothing: " + err.Error()
	}
	will, done = mode.Destruction(rec, c.Root)
	if same(mode, rec, c) != nil {
		instead := fmt.Sprintf(" (mode %q, as it was created; the configuration describes another pool)", rec.Mode)
		will, done = will+instead, done+instead
	}
	return will, done
}

// same returns errdefs.ErrFailedPrecondition if c describes another pool than rec.
func same(mode Mode, rec metadata.PoolRecord, c config.Config) error {
	switch {
	case rec.Mode != c.Pool.Mode:
		return differs("pool.mode", rec.Mode, c.Pool.Mode)
	case rec.Name != c.Pool.Name:
		return differs("pool.name", rec.Name, c.Pool.Name)
	}
	return mode.Same(rec, c)
}

// differs is the error for a setting that the pool was not made with.
func differs(key string, recorded, configured any) error {
	return fmt.Errorf("%s is %v in the configuration, but the pool was made with %v: "+
		"change it back, or start over with `thinsnap pool destroy`: %w",
		key, configured, recorded, errdefs.ErrFailedPrecondition)
}

// asPrecondition classifies the errors of a pool that is not the recorded one, or that cannot be
// made, as errdefs.ErrFailedPrecondition.
func asPrecondition(err error) error {
	for _, kind := range []error{
		pool.ErrWrongPool, pool.ErrNameTaken, pool.ErrDeviceTaken, pool.ErrNotActive, os.ErrNotExist, unix.ENOTBLK,
	} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%w; nothing was changed: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return err
}

// now is the time in the form in which the store keeps it.
func now() time.Time { return time.Now().UTC() }
