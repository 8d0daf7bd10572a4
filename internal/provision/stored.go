package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// Stored is the pool that a store records.
type Stored struct {
	rec  metadata.PoolRecord
	mode Mode
}

// Read returns the pool that store records, or errdefs.ErrNotFound.
func Read(ctx context.Context, store *metadata.Store) (Stored, error) {
	rec, err := readRecord(ctx, store)
	if err != nil {
		return Stored{}, err
	}
	mode, err := modeOf(rec.Mode)
	return Stored{rec, mode}, err
}

// Complete reports whether the pool was made completely.
func (s Stored) Complete() bool { return s.rec.Complete }

// Foreign reports whether the pool is foreign: thinsnap then changes only its own volumes.
func (s Stored) Foreign() bool { return s.rec.Foreign() }

// Files returns the paths of the files that back the pool; none for a pool on disks.
func (s Stored) Files() []string { return s.mode.Files(s.rec) }

// Growth returns the settings for the pool's growth.
func (s Stored) Growth(c config.Config) pool.Growth { return s.mode.Growth(c) }

// ExtendGrace is how long a cancelled extension of the pool may take to end.
func (s Stored) ExtendGrace() time.Duration { return s.mode.ExtendGrace() }

// Lock keeps every other thinsnap from using the pool while control is open. It fails with
// errdefs.ErrFailedPrecondition if another one uses the pool.
func (s Stored) Lock(control *devmapper.Control) error { return lock(control, s.rec) }

// OpenLoaded opens the pool if it is loaded in the kernel, and fails with devmapper.ErrNotFound if
// it is not.
func (s Stored) OpenLoaded(control *devmapper.Control) (*pool.Pool, error) {
	return s.mode.OpenLoaded(control, s.rec)
}

// ReadMetadata calls read with the pool's metadata. The pool must be complete, and not loaded in
// the kernel.
func (s Stored) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	return s.mode.ReadMetadata(ctx, s.rec, read)
}

// CheckMetadata runs thin_check on the pool's metadata. The pool must be complete, and not loaded
// in the kernel.
func (s Stored) CheckMetadata(ctx context.Context) (repair.Report, error) {
	return s.mode.CheckMetadata(ctx, s.rec)
}

// RepairableMetadata returns the pool's metadata for a repair. The pool must be complete, and not
// loaded in the kernel. If thinsnap cannot repair it, the error is errdefs.ErrNotImplemented, with
// a remedy.
func (s Stored) RepairableMetadata(ctx context.Context) (repair.Metadata, error) {
	return s.mode.RepairableMetadata(ctx, s.rec)
}

// RequireOwn fails with errdefs.ErrNotImplemented for a foreign pool, whose metadata thinsnap
// neither checks nor repairs.
func (s Stored) RequireOwn() error {
	if s.Foreign() {
		return errForeignMetadata
	}
	return nil
}

// TakeOut removes the pool and its volumes from the kernel, if they are loaded. While a volume is
// in use, it fails with errdefs.ErrUnavailable, names the users and removes nothing.
func (s Stored) TakeOut(ctx context.Context, control *devmapper.Control) error {
	if err := s.Lock(control); err != nil {
		return err
	}
	loaded, err := s.OpenLoaded(control)
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err != nil {
		return snapshotter.Classify(asPrecondition(err))
	}
	volumes, err := loaded.Active(ctx)
	if err != nil {
		return err
	}
	var used []string
	for _, vol := range volumes {
		if vol.OpenCount > 0 {
			used = append(used, vol.Path+mountpoints(vol.Device.Number()))
		}
	}
	if len(used) > 0 {
		return fmt.Errorf("pool %s is in use: stop the containers and unmount its volumes: %s: %w",
			s.rec.Name, strings.Join(used, ", "), errdefs.ErrUnavailable)
	}
	return snapshotter.Classify(loaded.Close(ctx))
}

// mountpoints describes where a device is mounted in this mount namespace. The number is
// "major:minor".
func mountpoints(number string) string {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return fmt.Sprintf("%d:%d", m.Major, m.Minor) != number, false
	})
	if err != nil || len(mounts) == 0 {
		return ""
	}
	var at []string
	for _, m := range mounts {
		at = append(at, m.Mountpoint)
	}
	return " on " + strings.Join(at, " and ")
}

// closePool removes the pool from the kernel, if it is loaded.
func closePool(ctx context.Context, mode Mode, control *devmapper.Control, rec metadata.PoolRecord) error {
	p, err := mode.OpenLoaded(control, rec)
	switch {
	case err == nil:
		err = p.Close(ctx)
	case errors.Is(err, devmapper.ErrNotFound):
		err = nil
	}
	if err != nil {
		return snapshotter.Classify(asPrecondition(err))
	}
	// gofail: var afterPoolClose struct{}
	return nil
}
