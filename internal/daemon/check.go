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
	"github.com/thinsnap/thinsnap/metadata"
)

// secondLook is when a running daemon is looked at again, after a difference was found.
const secondLook = time.Second

// Check implements admin.Backend.
func (d *Daemon) Check(ctx context.Context, repair bool) (check.Report, error) {
	// There can be one metadata snapshot of the pool at a time.
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
	if err := d.mend(ctx, report.Findings); err != nil {
		return report, err
	}
	after, err := d.check(ctx)
	after.Repaired = mended(report.Findings, after)
	return after, err
}

// check looks twice if it finds something: what the daemon is doing meanwhile looks like a difference.
func (d *Daemon) check(ctx context.Context) (check.Report, error) {
	from := check.Sources{
		Store: d.store, Pool: d.pool, Stored: d.stored, MountDir: mountDir(d.config),
		Running: true, Spares: d.snapshotter.SpareVolumes,
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

// mend does what the findings say that a repair does.
func (d *Daemon) mend(ctx context.Context, findings []check.Finding) error {
	var errs []error
	for _, f := range findings {
		var err error
		switch {
		case f.Repair == "":
		case f.Kind == check.KindMetadataSnapshot:
			err = d.pool.ReleaseMetadata(ctx)
		case f.Kind == check.KindLoop:
			err = blockdev.LoopDetach(f.Loop)
		case f.Device != 0:
			err = d.snapshotter.SettleDevice(ctx, thin.ID(f.Device))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", f.Subject, f.Repair, err))
		}
	}
	return errors.Join(errs...)
}

// mended returns the findings that are no more.
func mended(before []check.Finding, after check.Report) []check.Finding {
	left := slices.Concat(after.Findings, after.Pending)
	return slices.DeleteFunc(slices.Clone(before), func(f check.Finding) bool {
		return slices.ContainsFunc(left, f.Same)
	})
}

// CheckRoot is Check for the root of a daemon that is not running, in which it changes nothing. With repair it does what
// the next start of the daemon would do, and then mends what is left. Where the store contradicts itself in what cannot be
// made anew it does neither, for both believe the store: FailedPrecondition.
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
	if err := requireMended(before.Findings); err != nil {
		return before, err
	}
	d, err := Open(ctx, c)
	if err != nil {
		return before, fmt.Errorf("the daemon cannot start here: %w", err)
	}
	err = d.snapshotter.Cleanup(ctx)
	if err == nil {
		_, err = d.Check(ctx, true)
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return before, err
	}
	after, err := checkStopped(ctx, c)
	after.Repaired = mended(slices.Concat(before.Findings, before.Pending), after)
	return after, err
}

// rebuild makes anew what of the store can be, if that is needed.
func rebuild(ctx context.Context, c config.Config, findings []check.Finding) error {
	if !slices.ContainsFunc(findings, func(f check.Finding) bool { return f.Kind == check.KindStore && f.Repair != "" }) {
		return nil
	}
	store, err := metadata.Open(storePath(c), metadata.Options{})
	if err != nil {
		return err
	}
	return errors.Join(store.Rebuild(ctx), store.Close())
}

// requireMended fails if something is wrong with the store that rebuild could not see to.
func requireMended(findings []check.Finding) error {
	i := slices.IndexFunc(findings, func(f check.Finding) bool { return f.Kind == check.KindStore && f.Repair == "" })
	if i < 0 {
		return nil
	}
	return fmt.Errorf("nothing else is mended, for the store is wrong in what cannot be made anew (%s: %s): "+
		"put it back from a backup, of the same moment as the pool: %w", findings[i].Subject, findings[i].Text, errdefs.ErrFailedPrecondition)
}

func checkStopped(ctx context.Context, c config.Config) (_ check.Report, err error) {
	if _, err := os.Stat(storePath(c)); errors.Is(err, os.ErrNotExist) {
		return check.Report{}, fmt.Errorf("the root %s has no store: %w", c.Root, errdefs.ErrNotFound)
	}
	store, err := metadata.Open(storePath(c), metadata.Options{ReadOnly: true})
	if err != nil {
		return check.Report{}, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	from := check.Sources{Store: store, MountDir: mountDir(c)}
	stored, err := provision.Read(ctx, store)
	if errdefs.IsNotFound(err) {
		return check.Run(ctx, from) // there never was a pool
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
		from.Pool, err = stored.OpenLoaded(control)
		if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			return check.Report{}, err
		}
	}
	return check.Run(ctx, from)
}
