package main

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
	"github.com/thinsnap/thinsnap/metadata"
)

// backend is what the commands need of the snapshotter and of its pool.
type backend struct {
	// open brings the pool and the snapshotter up. It fails if another daemon works on the same root. The context is for
	// the opening only: it ends when the daemon is told to stop, and operations and background work go on past that.
	open func(context.Context, config.Config) (*service, error)
	// createPool makes the pool of a root that has none, and leaves it as the daemon finds it.
	createPool func(context.Context, config.Config) (admin.Pool, error)
	// planPool says what createPool would do, as lines of shell, and does nothing.
	planPool func(context.Context, config.Config) ([]string, error)
	// checkRoot checks a stopped daemon's root, and with repair mends it.
	checkRoot func(ctx context.Context, c config.Config, repair bool) (check.Report, error)
	// checkPool has the metadata of a stopped daemon's pool checked, and repairPool repaired; undoRepair takes a repair back.
	checkPool  func(context.Context, config.Config) (repair.Report, error)
	repairPool func(ctx context.Context, c config.Config, bytes uint64, show func(repair.Report, []string) (bool, error)) (daemon.Repaired, error)
	undoRepair func(ctx context.Context, c config.Config, lose bool) (restored, kept string, err error)
	// recordedPool is what destroyPool removes: the pool of a stopped daemon's root, with all snapshots on it. It changes nothing.
	recordedPool func(context.Context, config.Config) (metadata.PoolRecord, error)
	destroyPool  func(context.Context, config.Config) error
}

// service is a snapshotter that is up.
type service struct {
	snapshotter snapshots.Snapshotter
	reports     admin.Backend
	// close ends the background work and closes the database. It leaves active devices alone: containers run on them.
	close func() error
}

// realBackend is the one of the program; tests have others.
func realBackend() backend {
	return backend{
		open: func(ctx context.Context, c config.Config) (*service, error) {
			d, err := daemon.Open(ctx, c)
			if err != nil {
				return nil, err
			}
			return &service{snapshotter: d.Snapshotter(), reports: d, close: d.Close}, nil
		},
		createPool:   daemon.CreatePool,
		planPool:     daemon.PlanPool,
		checkRoot:    daemon.CheckRoot,
		checkPool:    daemon.CheckPool,
		repairPool:   daemon.RepairPool,
		undoRepair:   daemon.UndoRepair,
		recordedPool: daemon.RecordedPool,
		destroyPool:  daemon.DestroyPool,
	}
}
