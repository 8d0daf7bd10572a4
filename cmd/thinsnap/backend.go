package main

import (
	"context"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
	"github.com/thinsnap/thinsnap/internal/doctor"
	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/disk"
	"github.com/thinsnap/thinsnap/metadata"
)

// backend has the functions behind the commands. Tests replace them.
type backend struct {
	// open opens the pool and the snapshotter. It fails if another process uses the same root. The
	// context limits only the call: operations and background work outlive it.
	open func(context.Context, config.Config) (*service, error)
	// createPool creates the pool of a root that has none.
	createPool func(context.Context, config.Config) (admin.Pool, error)
	// planPool returns the shell commands that createPool would run, and runs none of them.
	planPool func(context.Context, config.Config) ([]string, error)
	// checkRoot checks the root of a stopped daemon, and repairs it if repair is set.
	checkRoot func(ctx context.Context, c config.Config, repair bool) (check.Report, error)
	// checkPool, repairPool and undoRepair check and repair the metadata of a stopped daemon's
	// pool, and undo a repair.
	checkPool  func(context.Context, config.Config) (repair.Report, error)
	repairPool func(
		ctx context.Context, c config.Config, bytes uint64, show func(repair.Report, []string) (bool, error),
	) (daemon.Repaired, error)
	undoRepair func(ctx context.Context, c config.Config, lose bool) (restored, kept string, err error)
	// recordedPool returns the pool that destroyPool would remove from a stopped daemon's root.
	recordedPool func(context.Context, config.Config) (metadata.PoolRecord, error)
	destroyPool  func(context.Context, config.Config) error
	// adoption returns the record of an adoption in a root, or errdefs.ErrNotFound.
	adoption func(root string) (adopt.Record, error)
	// planAdoption changes nothing. adopt and undoAdoption report each step when it begins.
	planAdoption func(context.Context, plan.Options) (plan.Plan, error)
	adopt        func(ctx context.Context, o plan.Options, report func(step string)) (plan.Plan, error)
	undoAdoption func(ctx context.Context, o plan.Options, report func(step string)) error
	diagnose     func(context.Context, doctor.Options) doctor.Report
	// containerds and dockerd find the daemons of containerd and Docker on the machine.
	// setupRecords is the directory with the records of `thinsnap setup`, and setupLock its lock
	// file. execute runs a program of the machine.
	containerds             func() ([]setup.Containerd, error)
	dockerd                 func() (setup.Dockerd, error)
	setupRecords, setupLock string
	execute                 func(ctx context.Context, args ...string) error
	// diskDropIn is the path of the drop-in for thinsnap's unit, and disksByID the directory of
	// stable disk names.
	diskDropIn, disksByID string
}

type service struct {
	clients  map[string]served // by name
	comparer diff.Comparer
	reports  admin.Backend
	// close ends the background work and closes the store. Active volumes stay, because containers
	// use them.
	close func() error
}

// served is the service on the socket of one client.
type served struct {
	snapshotter snapshots.Snapshotter
	admission   rpc.Admission // may be nil
}

func realBackend() backend {
	return backend{
		open: func(ctx context.Context, c config.Config) (*service, error) {
			d, err := daemon.Open(ctx, c)
			if err != nil {
				return nil, err
			}
			sv := &service{clients: make(map[string]served), comparer: d.Comparer(), reports: d, close: d.Close}
			for _, client := range c.AllClients() {
				sv.clients[client.Name] = served{d.Served(client.Name), d.Registry(client.Name)}
			}
			return sv, nil
		},
		createPool:   daemon.CreatePool,
		planPool:     daemon.PlanPool,
		checkRoot:    daemon.CheckRoot,
		checkPool:    daemon.CheckPool,
		repairPool:   daemon.RepairPool,
		undoRepair:   daemon.UndoRepair,
		recordedPool: daemon.RecordedPool,
		destroyPool:  daemon.DestroyPool,
		adoption:     adopt.Read,
		planAdoption: plan.Make,
		adopt:        adopt.Run,
		undoAdoption: adopt.Undo,
		diagnose:     doctor.Run,
		containerds:  setup.Find,
		dockerd:      setup.FindDockerd,
		setupRecords: "/etc/thinsnap/setup",
		setupLock:    "/run/thinsnap-setup.lock", // systemd creates /run/thinsnap only when the unit starts
		diskDropIn:   disk.DropIn,
		disksByID:    disk.ByID,
		execute: func(ctx context.Context, args ...string) error {
			_, err := program.Run(ctx, program.Command{Args: args})
			return err
		},
	}
}
