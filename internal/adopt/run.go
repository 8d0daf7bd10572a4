package adopt

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/rootdir"
)

func now() time.Time { return time.Now().UTC() }

// Run adopts what plan.Make finds, or ends an adoption that was killed. Containerd and thinsnap must
// be stopped. It calls report with each step before it takes it. It returns the plan, of which only
// the Options are set if it had no need of one.
//
// It is errdefs.ErrFailedPrecondition if something stands in the way, which the plan says; if another
// process has a database open; if an adoption is being undone, or was begun with other options; and
// errdefs.ErrAlreadyExists if it is complete. After each error it can be called again, and Undo goes
// back.
func Run(ctx context.Context, o plan.Options, report func(step string)) (plan.Plan, error) {
	control, err := devmapper.Open()
	if err != nil {
		return plan.Plan{Options: o}, err
	}
	return run(ctx, o, report, host{control})
}

func run(ctx context.Context, o plan.Options, report func(step string), m machine) (p plan.Plan, err error) {
	p.Options = o
	defer func() { err = errors.Join(err, m.close()) }()
	a, err := begin(o.Config.Root, report, m)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, a.end()) }()
	switch a.record.Phase {
	case Back:
		return p, fmt.Errorf("this adoption is being undone: run `thinsnap adopt devmapper --undo` again, "+
			"and then this: %w", errdefs.ErrFailedPrecondition)
	case Adopted:
		if found, err := exists(rootdir.Store(a.root)); err != nil || found {
			return p, errors.Join(err, fmt.Errorf("the adoption was completed on %s: `--undo` goes back: %w",
				a.record.Ended.Format(time.DateTime), errdefs.ErrAlreadyExists))
		}
	case Forward:
		if err := a.record.requireSame(o); err != nil {
			return p, err
		}
		goOn, err := a.canGoOn(ctx)
		if err != nil {
			return p, err
		}
		if goOn {
			return p, a.goOn(ctx)
		}
		// The built-in could start since: what was made then may no longer be true.
		if err := a.startOver(); err != nil {
			return p, err
		}
	}
	return a.fresh(ctx, o)
}

// fresh adopts.
func (a *adoption) fresh(ctx context.Context, o plan.Options) (plan.Plan, error) {
	p := plan.Plan{Options: o}
	r := newRecord(o)
	for _, path := range []string{r.poolPath(), r.snapshotsPath()} {
		if found, err := exists(path + savedSuffix); err != nil || found {
			return p, errors.Join(err, fmt.Errorf("%s%s exists, and would be overwritten: move it away: %w", path,
				savedSuffix, errdefs.ErrFailedPrecondition))
		}
	}
	if err := a.holdAll(r); err != nil {
		return p, err
	}
	a.report("compare containerd's databases and the pool")
	p, err := a.plan(ctx, o)
	if err != nil {
		return p, err
	}
	if !p.Possible() {
		return p, fmt.Errorf("%d obstacles and %d damaged snapshots stand in the way; nothing was changed: %w",
			len(p.Obstacles), p.Damaged(), errdefs.ErrFailedPrecondition)
	}
	if err := a.requireNoStore(); err != nil {
		return p, err
	}
	if err := a.prepare(ctx, &r, p); err != nil {
		return p, err
	}
	if p.Reload != nil {
		a.report("have the pool zero new blocks")
	}
	if err := a.forward(ctx); err != nil {
		return p, a.takeBack(context.WithoutCancel(ctx), err)
	}
	return p, nil
}

// takeBack takes back what was done before err, unless the point of no return was passed. It returns
// err, with what is left.
func (a *adoption) takeBack(ctx context.Context, err error) error {
	renamed, lookErr := a.isRenamed(ctx)
	if lookErr == nil && !renamed {
		if lookErr = a.startOver(); lookErr == nil {
			return fmt.Errorf("%w; everything is as it was before", err)
		}
	}
	return errors.Join(fmt.Errorf("%w; the adoption is not complete: end it with `--yes`, or go back with `--undo`", err),
		lookErr)
}

// canGoOn reports whether the built-in cannot have started since a killed run, which then can go on.
func (a *adoption) canGoOn(ctx context.Context) (bool, error) {
	r := a.record
	blocked, err := a.isBlocked()
	if err != nil {
		return false, err
	}
	if !blocked {
		return false, a.requireNotRenamed(ctx, r.poolPath()+" is no longer the text that was put in its place")
	}
	changed := ""
	for _, c := range []struct {
		h    **held
		path string
	}{{&a.poolDB, r.poolPath()}, {&a.snapshotsDB, r.snapshotsPath()}} {
		file := c.path
		if blocked, err := isBlocked(c.path); err != nil {
			return false, err
		} else if blocked {
			file += savedSuffix
		}
		if *c.h, err = hold(file); err != nil {
			return false, err
		}
		sum, err := checksum(file)
		if err != nil {
			return false, err
		}
		if sum != r.SHA256[filepath.Base(c.path)] {
			changed = file
		}
	}
	if changed == "" {
		return true, nil
	}
	return false, a.requireNotRenamed(ctx, changed+" has changed since it was adopted")
}

// requireNotRenamed fails, and says why, if an adoption has passed the point of no return.
func (a *adoption) requireNotRenamed(ctx context.Context, why string) error {
	renamed, err := a.isRenamed(ctx)
	if err == nil && renamed {
		err = fmt.Errorf("%s: go back with `thinsnap adopt devmapper --undo`: %w", why, errdefs.ErrFailedPrecondition)
	}
	return err
}

// startOver takes back what was done before the point of no return, and forgets that it was begun.
func (a *adoption) startOver() error {
	if err := a.resume(a.record.Device); err != nil {
		return err
	}
	if err := a.giveBack(); err != nil {
		return err
	}
	a.report("remove what was begun")
	return a.forget()
}

// giveBack gives the built-in its databases and its mapped devices. Without the database of the pool,
// which comes last, it does not start.
func (a *adoption) giveBack() error {
	r := a.record
	if err := a.releaseDatabases(); err != nil {
		return err
	}
	blocked, err := a.isBlocked()
	if err != nil {
		return err
	}
	if blocked {
		for _, device := range a.activate(r.Device, r.Idle) {
			a.report("could not activate again: " + device)
		}
	}
	// gofail: var adoptBeforeUnblock struct{}
	if err := unblock(r.snapshotsPath()); err != nil {
		return err
	}
	// gofail: var adoptAfterUnblockSnapshots struct{}
	if err := unblock(r.poolPath()); err != nil {
		return err
	}
	// gofail: var adoptAfterUnblockPool struct{}
	return nil
}

// goOn ends an adoption from where a killed run ended.
func (a *adoption) goOn(ctx context.Context) (err error) {
	a.report("go on with the adoption of " + a.record.Began.Format(time.DateTime))
	if a.metaDB, err = hold(a.record.metaPath()); err != nil {
		return err
	}
	if err := a.lockStore(ctx); err != nil {
		return err
	}
	if err := a.resume(a.record.Device); err != nil {
		return err
	}
	return a.forward(ctx)
}
