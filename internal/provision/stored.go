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

// Read returns the pool that store records. It is errdefs.ErrNotFound if there is none.
func Read(ctx context.Context, store *metadata.Store) (Stored, error) {
	rec, err := recorded(ctx, store)
	if err != nil {
		return Stored{}, err
	}
	mode, err := modeOf(rec.Mode)
	return Stored{rec, mode}, err
}

// Complete reports whether the pool was made completely.
func (s Stored) Complete() bool { return s.rec.Complete }

// Foreign reports whether thinsnap did not make the pool, and so changes only its own volumes.
func (s Stored) Foreign() bool { return s.rec.Foreign() }

// Files returns the paths of the files that back the pool; none for a pool on disks.
func (s Stored) Files() []string { return s.mode.Files(s.rec) }

// Growth returns how the pool grows by itself.
func (s Stored) Growth(c config.Config) pool.Growth { return s.mode.Growth(c) }

// ExtendGrace is how long a cancelled extension of the pool may take to end.
func (s Stored) ExtendGrace() time.Duration { return s.mode.ExtendGrace() }

// Lock keeps every other process from using the pool as long as control is open. If one does, it is
// errdefs.ErrFailedPrecondition.
func (s Stored) Lock(control *devmapper.Control) error { return lock(control, s.rec) }

// OpenLoaded opens the pool if it is in the kernel. It is devmapper.ErrNotFound if it is not.
func (s Stored) OpenLoaded(control *devmapper.Control) (*pool.Pool, error) {
	return s.mode.OpenLoaded(control, s.rec)
}

// ReadMetadata calls read with the pool's metadata. The pool must be formed, and not in the kernel.
func (s Stored) ReadMetadata(ctx context.Context, read func(*thinmeta.Metadata) error) error {
	return s.mode.ReadMetadata(ctx, s.rec, read)
}

// CheckMetadata runs thin_check on the pool's metadata. The pool must be formed, and not in the
// kernel.
func (s Stored) CheckMetadata(ctx context.Context) (repair.Report, error) {
	return s.mode.CheckMetadata(ctx, s.rec)
}

// RepairableMetadata returns the pool's metadata for a repair. The pool must be formed, and not in
// the kernel. It is errdefs.ErrNotImplemented, with a remedy, if thinsnap cannot repair it.
func (s Stored) RepairableMetadata(ctx context.Context) (repair.Metadata, error) {
	return s.mode.RepairableMetadata(ctx, s.rec)
}

// RequireOwn is errdefs.ErrNotImplemented for a foreign pool, whose metadata thinsnap neither
// checks nor repairs.
func (s Stored) RequireOwn() error {
	if s.Foreign() {
		return errForeignMetadata
	}
	return nil
}

// TakeOut removes the pool and its volumes from the kernel if they are there. It is
// errdefs.ErrUnavailable, names the users and removes nothing while a volume is in use.
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
		return fmt.Errorf("pool %s is in use: stop the containers and unmount what is mounted from it: %s: %w",
			s.rec.Name, strings.Join(used, ", "), errdefs.ErrUnavailable)
	}
	return snapshotter.Classify(loaded.Close(ctx))
}

// mountpoints says where the device with that number is mounted in this mount namespace.
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

// closePool takes the pool out of the kernel if it is there.
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
