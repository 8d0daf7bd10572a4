package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// secondLook is the time between the two runs of a check in a running daemon.
const secondLook = time.Second

// Check implements admin.Backend.
func (d *Daemon) Check(ctx context.Context, repair bool) (check.Report, error) {
	// A pool can have only one metadata snapshot at a time.
	select {
	case d.checking <- struct{}{}:
		defer func() { <-d.checking }()
	case <-ctx.Done():
		return check.Report{}, ctx.Err()
	}
	report, err := d.check(ctx)
	if err != nil || !repair || len(report.Findings) == 0 {
		return report, err
	}
	if err := d.repair(ctx, report.Findings); err != nil {
		return report, err
	}
	after, err := d.check(ctx)
	after.Repaired = repaired(report.Findings, after)
	return after, err
}

// check runs a second time if it finds something: changes during a check look like differences.
func (d *Daemon) check(ctx context.Context) (check.Report, error) {
	from := check.Sources{
		Store: d.store, Pool: d.pool, Stored: d.stored, MountDir: rootdir.Mounts(d.config.Root),
		Running: true, Unrecorded: d.snapshotter.UnrecordedVolumes,
	}
	first, err := check.Run(ctx, from)
	if err != nil || len(first.Findings) == 0 {
		return first, err
	}
	select {
	case <-time.After(secondLook):
	case <-ctx.Done():
		return check.Report{}, ctx.Err()
	}
	second, err := check.Run(ctx, from)
	return second.Persisting(first), err
}

func (d *Daemon) repair(ctx context.Context, findings []check.Finding) error {
	var errs []error
	for _, f := range findings {
		var err error
		switch {
		case f.Repair == "":
		case f.Kind == check.KindMetadataSnapshot:
			err = d.pool.ReleaseMetadata(ctx)
		case f.Kind == check.KindLoop:
			err = blockdev.LoopDetach(f.Loop)
		case f.DeviceID != 0:
			err = d.snapshotter.SettleDevice(ctx, thin.ID(f.DeviceID))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", f.Subject, f.Repair, err))
		}
	}
	return errors.Join(errs...)
}

// repaired returns the findings that are gone after a repair.
func repaired(before []check.Finding, after check.Report) []check.Finding {
	left := slices.Concat(after.Findings, after.Pending)
	return slices.DeleteFunc(slices.Clone(before), func(f check.Finding) bool {
		return slices.ContainsFunc(left, f.Same)
	})
}

// CheckRoot is Check for the root of a stopped daemon. Without repair it changes nothing. With
// repair it first does the work of the daemon's next start, and then repairs the rest. If the store
// has damage that cannot be rebuilt, it only rebuilds the store's indexes and returns
// errdefs.ErrFailedPrecondition, because all other repairs trust the store.
//
// It fails with metadata.ErrLocked while a daemon has the root open.
func CheckRoot(ctx context.Context, c config.Config, repair bool) (check.Report, error) {
	before, err := checkStopped(ctx, c)
	if err != nil || !repair {
		return before, err
	}
	if err := rebuild(ctx, c, before.Findings); err != nil {
		return before, err
	}
	if err := requireIntactStore(before.Findings); err != nil {
		return before, err
	}
	d, err := Open(ctx, c)
	if err != nil {
		return before, fmt.Errorf("the daemon cannot start on this root: %w", err)
	}
	err = d.snapshotter.Cleanup(ctx)
	if err == nil {
		_, err = d.Check(ctx, true)
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return before, err
	}
	after, err := checkStopped(ctx, c)
	after.Repaired = repaired(slices.Concat(before.Findings, before.Pending), after)
	return after, err
}

// rebuild rebuilds the store's indexes if they have problems.
func rebuild(ctx context.Context, c config.Config, findings []check.Finding) error {
	if !slices.ContainsFunc(findings, func(f check.Finding) bool { return f.Kind == check.KindStore && f.Repair != "" }) {
		return nil
	}
	store, err := openStore(c)
	if err != nil {
		return err
	}
	return errors.Join(store.Rebuild(ctx), store.Close())
}

// requireIntactStore fails if the store has problems that rebuild cannot repair.
func requireIntactStore(findings []check.Finding) error {
	i := slices.IndexFunc(findings, func(f check.Finding) bool { return f.Kind == check.KindStore && f.Repair == "" })
	if i < 0 {
		return nil
	}
	return fmt.Errorf("not repaired: the store has damage that cannot be rebuilt (%s: %s): "+
		"restore it from a backup of the same time "+
		"as the pool: %w", findings[i].Subject, findings[i].Text, errdefs.ErrFailedPrecondition)
}

func checkStopped(ctx context.Context, c config.Config) (_ check.Report, err error) {
	if _, err := os.Stat(rootdir.Store(c.Root)); errors.Is(err, os.ErrNotExist) {
		return check.Report{}, noData(c)
	}
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{ReadOnly: true})
	if err != nil {
		return check.Report{}, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	from := check.Sources{Store: store, MountDir: rootdir.Mounts(c.Root)}
	stored, err := provision.Read(ctx, store)
	if errdefs.IsNotFound(err) {
		return check.Run(ctx, from) // the root never had a pool
	}
	if err != nil {
		return check.Report{}, err
	}
	from.Stored = stored
	control, err := devmapper.Open()
	if err != nil && !errors.Is(err, devmapper.ErrUnavailable) {
		return check.Report{}, err
	}
	if err == nil {
		defer func() { err = errors.Join(err, control.Close()) }()
		if err := stored.Lock(control); err != nil {
			return check.Report{}, err
		}
		from.Pool, err = stored.OpenLoaded(control)
		if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			return check.Report{}, err
		}
	}
	return check.Run(ctx, from)
}
