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

// Open loads the pool recorded in store into the kernel, or makes the pool that c describes if the
// store records none. The record of a new pool is written first, so that a second call completes
// the pool after a crash. The record of a foreign pool is written after the pool is open.
//
// It fails with errdefs.ErrFailedPrecondition if c describes another pool than the record, if the
// pool found is not the recorded one, or if the pool cannot be made. Then at most the record and the
// files of a new pool were made.
func Open(ctx context.Context, store *metadata.Store, control *devmapper.Control, c config.Config) (*pool.Pool, error) {
	mode, err := modeOf(c.Pool.Mode)
	if err != nil {
		return nil, err
	}
	rec, err := readRecord(ctx, store)
	found := err == nil
	if errdefs.IsNotFound(err) {
		rec, err = mode.New(ctx, c)
	}
	if err == nil {
		err = same(mode, rec, c)
	}
	if err == nil && !rec.Complete {
		err = requireName(control, rec)
	}
	if err == nil && !found && !rec.Complete {
		err = setPool(ctx, store, rec)
	}
	if err != nil {
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

// readRecord returns the record of the pool, with absolute paths in the store's root.
func readRecord(ctx context.Context, store *metadata.Store) (metadata.PoolRecord, error) {
	rec, err := store.Pool(ctx)
	rec.Loop = inRoot(rec.Loop, filepath.Dir(store.Path()))
	return rec, err
}

// setPool stores a record with paths relative to the root, so that the root can be moved.
func setPool(ctx context.Context, store *metadata.Store, rec metadata.PoolRecord) error {
	rec.Loop = relative(rec.Loop, filepath.Dir(store.Path()))
	return store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetPool(rec) })
}

// lock keeps every other thinsnap from using the pool while control is open. The root's lock is not
// enough: a copy of the root has its own.
func lock(control *devmapper.Control, rec metadata.PoolRecord) error {
	name := rec.ID
	if rec.Foreign() {
		name = cmp.Or(rec.Existing.UUID, rec.Existing.MappedDevice)
	}
	err := control.Lock(name)
	if errors.Is(err, devmapper.ErrLocked) {
		err = fmt.Errorf("pool %s is in use by another thinsnap, whose root is another one or a copy of this one: %w: "+
			"stop one of the two: %w", rec.Name, err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Plan returns the shell commands by which Open would make the pool, or the errors with which Open
// would fail. It changes nothing, except that LVM activates an inactive pool in mode "existing".
// The store may be nil.
func Plan(ctx context.Context, store *metadata.Store, c config.Config) ([]string, error) {
	mode, err := modeOf(c.Pool.Mode)
	if err != nil {
		return nil, err
	}
	if store != nil {
		rec, err := readRecord(ctx, store)
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

// RequireName fails with errdefs.ErrFailedPrecondition if a foreign mapped device has the name that
// Open needs for a pool in mode "loop". In the other modes LVM or the owner names the pool. The
// store may be nil.
func RequireName(ctx context.Context, store *metadata.Store, control *devmapper.Control, c config.Config) error {
	rec := metadata.PoolRecord{Mode: c.Pool.Mode, Name: c.Pool.Name}
	if store != nil {
		stored, err := readRecord(ctx, store)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		rec.ID = stored.ID
	}
	return requireName(control, rec)
}

func requireName(control *devmapper.Control, rec metadata.PoolRecord) error {
	if rec.Mode != metadata.ModeLoop {
		return nil
	}
	if err := loopSpec(rec).RequireName(control); err != nil {
		return fmt.Errorf("pool %s: %w", rec.Name, asPrecondition(err))
	}
	return nil
}

// Destroy removes the pool recorded in store, with every snapshot, from the kernel and from its
// disk or files. From a foreign pool it removes the store's volumes only. While a volume is in use,
// it fails with errdefs.ErrUnavailable and removes nothing. The caller removes the store.
func Destroy(ctx context.Context, store *metadata.Store, control *devmapper.Control) error {
	rec, err := readRecord(ctx, store)
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

// Destruction describes, for the operator, what Destroy will remove and what it has removed. It
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
		return settingError("pool.mode", rec.Mode, c.Pool.Mode)
	case rec.Name != c.Pool.Name:
		return settingError("pool.name", rec.Name, c.Pool.Name)
	}
	return mode.Same(rec, c)
}

// settingError returns the error for a setting that the pool was not made with.
func settingError(key string, recorded, configured any) error {
	return fmt.Errorf("%s is %v in the configuration, but the pool was made with %v: "+
		"change it back, or start over with `thinsnap pool destroy`: %w",
		key, configured, recorded, errdefs.ErrFailedPrecondition)
}

// asPrecondition classifies errors about a wrong pool, or one that cannot be made, as
// errdefs.ErrFailedPrecondition.
func asPrecondition(err error) error {
	if isPrecondition(err) {
		return fmt.Errorf("%w; nothing was changed: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// asPreconditionOf is asPrecondition for the pool of rec. A part of an incomplete pool may have been
// made by now.
func asPreconditionOf(rec metadata.PoolRecord, err error) error {
	if !rec.Complete && isPrecondition(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return asPrecondition(err)
}

func isPrecondition(err error) bool {
	for _, kind := range []error{
		pool.ErrWrongPool, pool.ErrNameTaken, pool.ErrGroupTaken, pool.ErrDeviceTaken, pool.ErrNotActive, os.ErrNotExist,
		unix.ENOTBLK,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// now returns the time in UTC, as in the store.
func now() time.Time { return time.Now().UTC() }
