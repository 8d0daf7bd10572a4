package provision

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func modes() map[string]Mode {
	return map[string]Mode{
		metadata.ModeLoop:      loop{},
		metadata.ModeDirectLVM: directLVM{},
		metadata.ModeExisting:  existing{},
	}
}

// modeOf returns the mode with the given name. It fails with errdefs.ErrNotImplemented for an
// unknown mode: a newer thinsnap made the pool.
func modeOf(name string) (Mode, error) {
	m, ok := modes()[name]
	if !ok {
		return nil, fmt.Errorf("this version of thinsnap has no pool mode %q: %w", name, errdefs.ErrNotImplemented)
	}
	return m, nil
}

// RootFiles returns the relative paths of all files and directories of pools in the root directory,
// in any mode. A directory comes before its content.
func RootFiles() []string {
	var all []string
	for _, mode := range modes() {
		all = append(all, mode.RootFiles()...)
	}
	slices.Sort(all)
	return all
}

// A Mode is one kind of pool: where its space comes from, and who maintains it. Every rec is the
// record of a pool in this mode.
type Mode interface {
	// New returns a record for the pool that c describes. It changes nothing, except that LVM
	// activates an inactive pool in mode "existing". It fails with errdefs.ErrFailedPrecondition if
	// the pool cannot be made.
	New(ctx context.Context, c config.Config) (metadata.PoolRecord, error)
	// Same returns errdefs.ErrFailedPrecondition if c describes another pool than rec.
	Same(rec metadata.PoolRecord, c config.Config) error
	// Plan returns the shell commands by which Open makes the pool. It changes nothing.
	Plan(ctx context.Context, rec metadata.PoolRecord, c config.Config) ([]string, error)
	// Open loads the pool into the kernel, and makes it first if rec is not Complete. It returns
	// the pool's new record. It can be repeated after a crash.
	Open(
		ctx context.Context, control *devmapper.Control, rec metadata.PoolRecord, c config.Config,
	) (*pool.Pool, metadata.PoolRecord, error)
	// OpenLoaded opens a pool that is loaded in the kernel, and fails with devmapper.ErrNotFound if
	// it is not.
	OpenLoaded(control *devmapper.Control, rec metadata.PoolRecord) (*pool.Pool, error)
	// Files returns the paths of the files that back the pool; none for a pool on disks.
	Files(rec metadata.PoolRecord) []string
	// RootFiles returns the relative paths of the files and directories of pools in this mode in
	// the root directory.
	RootFiles() []string

	// The next three work on a complete pool that is not loaded in the kernel.

	// ReadMetadata calls read with the pool's metadata.
	ReadMetadata(ctx context.Context, rec metadata.PoolRecord, read func(*thinmeta.Metadata) error) error
	// CheckMetadata runs thin_check on the pool's metadata.
	CheckMetadata(ctx context.Context, rec metadata.PoolRecord) (repair.Report, error)
	// RepairableMetadata returns the pool's metadata for a repair. If thinsnap cannot repair it,
	// the error is errdefs.ErrNotImplemented, with a remedy.
	RepairableMetadata(ctx context.Context, rec metadata.PoolRecord) (repair.Metadata, error)

	// Destroy removes the pool with its volumes; from a foreign pool it removes the store's volumes
	// only. While a volume is in use, it fails with errdefs.ErrUnavailable and removes nothing.
	Destroy(ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord) error
	// Destruction describes, for the operator, what Destroy will remove and what it has removed.
	Destruction(rec metadata.PoolRecord, root string) (will, done string)
	// Growth returns the settings for the growth of the pool that c describes.
	Growth(c config.Config) pool.Growth
	// ExtendGrace is how long a cancelled extension of the pool may take to end.
	ExtendGrace() time.Duration
}

// growth is the part of Growth that all modes share.
func growth(c config.Config) pool.Growth {
	return pool.Growth{Threshold: uint64(c.Pool.AutoextendThreshold), Percent: uint64(c.Pool.AutoextendPercent)}
}
