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

// modes lists the modes that a pool can have.
func modes() map[string]Mode {
	return map[string]Mode{
		metadata.ModeLoop:      loop{},
		metadata.ModeDirectLVM: directLVM{},
		metadata.ModeExisting:  existing{},
	}
}

// modeOf returns the mode of that name. An unknown one is errdefs.ErrNotImplemented: a newer
// thinsnap made the pool.
func modeOf(name string) (Mode, error) {
	m, ok := modes()[name]
	if !ok {
		return nil, fmt.Errorf("this version of thinsnap has no pool mode %q: %w", name, errdefs.ErrNotImplemented)
	}
	return m, nil
}

// RootFiles returns what pools in any mode keep in the root directory: relative paths, those of
// directories before what is in them.
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
	// New returns a record for the pool that c describes. It changes nothing. A pool that cannot
	// be made is errdefs.ErrFailedPrecondition.
	New(ctx context.Context, c config.Config) (metadata.PoolRecord, error)
	// Same returns errdefs.ErrFailedPrecondition if c describes another pool than rec.
	Same(rec metadata.PoolRecord, c config.Config) error
	// Plan returns the shell commands by which Open makes the pool. It changes nothing.
	Plan(ctx context.Context, rec metadata.PoolRecord, c config.Config) ([]string, error)
	// Open brings the pool into the kernel, and makes it first if rec is not Complete. It returns
	// the record of the pool as it is then. After a crash it can be repeated.
	Open(
		ctx context.Context, control *devmapper.Control, rec metadata.PoolRecord, c config.Config,
	) (*pool.Pool, metadata.PoolRecord, error)
	// OpenLoaded opens a pool that is in the kernel. It is devmapper.ErrNotFound if it is not.
	OpenLoaded(control *devmapper.Control, rec metadata.PoolRecord) (*pool.Pool, error)
	// Files returns the paths of the files that back the pool; none for a pool on disks.
	Files(rec metadata.PoolRecord) []string
	// RootFiles returns what pools in this mode keep in the root directory: relative paths, also
	// of directories.
	RootFiles() []string

	// The next three work on a complete pool that is not in the kernel.

	// ReadMetadata calls read with the pool's metadata.
	ReadMetadata(ctx context.Context, rec metadata.PoolRecord, read func(*thinmeta.Metadata) error) error
	// CheckMetadata runs thin_check on the pool's metadata.
	CheckMetadata(ctx context.Context, rec metadata.PoolRecord) (repair.Report, error)
	// RepairableMetadata returns the pool's metadata for a repair. It is
	// errdefs.ErrNotImplemented, with a remedy, if thinsnap cannot repair it.
	RepairableMetadata(ctx context.Context, rec metadata.PoolRecord) (repair.Metadata, error)

	// Destroy removes the pool with its volumes; of a foreign pool only the store's volumes. It
	// is errdefs.ErrUnavailable, and removes nothing, while a volume is in use.
	Destroy(ctx context.Context, store *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord) error
	// Destruction says what Destroy will remove and what it has removed, for the operator.
	Destruction(rec metadata.PoolRecord, root string) (will, done string)
	// Growth returns how a pool that c describes grows by itself.
	Growth(c config.Config) pool.Growth
	// ExtendGrace is how long a cancelled extension of the pool may take to end.
	ExtendGrace() time.Duration
}

// growth is the part of Growth that is the same in every mode.
func growth(c config.Config) pool.Growth {
	return pool.Growth{Threshold: uint64(c.Pool.AutoextendThreshold), Percent: uint64(c.Pool.AutoextendPercent)}
}
