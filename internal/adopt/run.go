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

// Run makes the adoption that plan.Make plans, or completes an unfinished one. containerd and
// thinsnap must be stopped. It calls report before each step. It returns the plan, which has only
// its Options if Run did not need one. After each error, Run can be called again, and Undo can undo
// the adoption.
//
// It fails with errdefs.ErrFailedPrecondition if the plan has obstacles, if another process has a
// database open, if the adoption is being undone, or if it was begun with other options. It fails
// with errdefs.ErrAlreadyExists if it is complete.
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
		return p, fmt.Errorf("the adoption in this root is being undone: run `thinsnap adopt devmapper --undo` again, "+
			"and then this command: %w", errdefs.ErrFailedPrecondition)
	case Adopted:
		if found, err := exists(rootdir.Store(a.root)); err != nil || found {
			return p, errors.Join(err, fmt.Errorf("the adoption was completed on %s: `--undo` undoes it: %w",
				a.record.Ended.Format(time.DateTime), errdefs.ErrAlreadyExists))
		}
	case Forward:
		if err := a.record.requireSame(o); err != nil {
			return p, err
		}
		ok, err := a.canContinue(ctx)
		if err != nil {
			return p, err
		}
		if ok {
			return p, a.continueRun(ctx)
		}
		// The built-in may have run since, so the journal and the store may be out of date.
		if err := a.rollBack(); err != nil {
			return p, err
		}
	}
	return a.fresh(ctx, o)
}

func (a *adoption) fresh(ctx context.Context, o plan.Options) (plan.Plan, error) {
	p := plan.Plan{Options: o}
	r := newRecord(o)
	for _, path := range []string{r.poolPath(), r.snapshotsPath()} {
		if found, err := exists(path + savedSuffix); err != nil || found {
			return p, errors.Join(err, fmt.Errorf("%s%s exists and would be overwritten: move it away: %w", path,
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
		return p, a.rollBackAfter(context.WithoutCancel(ctx), err)
	}
	return p, nil
}

// rollBackAfter undoes the steps before err, unless the point of no return was passed. It returns err,
// with the resulting state.
func (a *adoption) rollBackAfter(ctx context.Context, err error) error {
	renamed, lookErr := a.isRenamed(ctx)
	if lookErr == nil && !renamed {
		if lookErr = a.rollBack(); lookErr == nil {
			return fmt.Errorf("%w; everything is as it was before", err)
		}
	}
	return errors.Join(fmt.Errorf("%w; the adoption is not complete: complete it with `--yes`, or undo it with "+
		"`--undo`", err), lookErr)
}

// canContinue returns true if the built-in cannot have started since a killed run.
func (a *adoption) canContinue(ctx context.Context) (bool, error) {
	r := a.record
	blocked, err := a.isBlocked()
	if err != nil {
		return false, err
	}
	if !blocked {
		return false, a.requireNotRenamed(ctx, r.poolPath()+" is no longer the text that thinsnap put there")
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

// requireNotRenamed fails with the reason why if the adoption has passed the point of no return.
func (a *adoption) requireNotRenamed(ctx context.Context, why string) error {
	renamed, err := a.isRenamed(ctx)
	if err == nil && renamed {
		err = fmt.Errorf("%s: undo the adoption with `thinsnap adopt devmapper --undo`: %w", why,
			errdefs.ErrFailedPrecondition)
	}
	return err
}

// rollBack undoes the steps before the point of no return, and removes the record.
func (a *adoption) rollBack() error {
	if err := a.resume(a.record.Device); err != nil {
		return err
	}
	if err := a.giveBack(); err != nil {
		return err
	}
	a.report("remove the files of the unfinished adoption")
	return a.forget()
}

// giveBack gives the built-in its databases and its mapped devices. The pool's database comes last,
// because the built-in does not start without it.
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

// continueRun completes an adoption after the last step of a killed run.
func (a *adoption) continueRun(ctx context.Context) (err error) {
	a.report("continue the adoption of " + a.record.Began.Format(time.DateTime))
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
