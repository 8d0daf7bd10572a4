package setup

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// PlanK3s is Plan for the containerd of k3s or RKE2, which write its main file at each start. If
// that file imports a directory, as with containerd 2.x, the drop-in goes there. Otherwise PlanK3s
// plans a template of the file that begins with k3s's own (k3s: pkg/agent/containerd,
// writeContainerdConfig), and Verify has nothing to check before the next start.
//
// Errors are those of Plan, errdefs.ErrNotFound before the first start, ErrFailedPrecondition if
// the user has a template, and ErrNotImplemented for a wish that needs an option of k3s.
func (c Containerd) PlanK3s(
	ctx context.Context, r Release, w Wish, record *journal.Record, command string,
) (Plan, error) {
	main, err := readOptional(c.Config)
	if err != nil {
		return Plan{}, err
	}
	if main == nil {
		return Plan{}, fmt.Errorf("%s is missing: start k3s or RKE2 once, which writes it: %w", c.Config, errdefs.ErrNotFound)
	}
	files, err := onDisk().readAll(c.Config)
	if err != nil {
		return Plan{}, err
	}
	if importsDirectory(c.Config, files[0].Imports) != "" {
		return c.Plan(ctx, r, w, record, command)
	}
	p := planner{Containerd: c, release: r, wish: w, record: record, command: command, files: files}
	return p.template(ctx, string(main))
}

func (p *planner) template(ctx context.Context, main string) (Plan, error) {
	if err := p.wish.validate(); err != nil {
		return Plan{}, err
	}
	if p.wish.Default || len(p.wish.Runtimes) > 0 {
		return Plan{}, fmt.Errorf("%s imports no directory, and its template cannot have a section twice: leave out "+
			"--default and --runtime, and give k3s or RKE2 the option --snapshotter=%s for all pods: %w", p.Config, p.wish.Proxy,
			errdefs.ErrNotImplemented)
	}
	dir := filepath.Dir(p.Config)
	// The first one takes precedence, and only containerd 2.x can have it.
	paths := []string{filepath.Join(dir, "config-v3.toml.tmpl"), filepath.Join(dir, "config.toml.tmpl")}
	path := paths[1]
	if p.release.AtLeast(2, 0) && p.files[0].Version >= 3 {
		path = paths[0]
	}
	base, err := p.dump(ctx, p.files)
	if err != nil {
		return Plan{}, err
	}
	parts, err := p.wish.parts(base, p.release)
	plan := Plan{Base: base, Planned: base}
	if err != nil || len(parts) == 0 {
		return plan, err
	}
	text, err := render("", 0, asSections(parts))
	if err != nil {
		return Plan{}, err
	}
	for _, one := range paths {
		present, err := readOptional(one)
		if err != nil {
			return Plan{}, err
		}
		if present != nil && (one != path || !isOwn(p.record, one, present)) {
			return Plan{}, fmt.Errorf("%s exists: add these lines at its end by hand, and restart k3s or RKE2:\n%s: %w",
				one, text, errdefs.ErrFailedPrecondition)
		}
	}
	whole, err := parse(p.Config, main+"\n"+text)
	if err != nil {
		return Plan{}, err
	}
	if plan.Planned, err = p.dump(ctx, append([]file{whole}, p.files[1:]...)); err != nil {
		return Plan{}, fmt.Errorf("with the planned change: %w", err)
	}
	if err := checkPlan(base, plan.Planned, parts); err != nil {
		return Plan{}, fmt.Errorf("%s: %w", p.Config, err)
	}
	present, err := readOptional(path)
	plan.Files = []journal.File{{
		Path: path, Before: present, After: []byte(p.head() + "{{ template \"base\" . }}\n" + text), Mode: p.mode(),
	}}
	plan.later = true
	return plan, err
}

// isOwn reports whether the set-up wrote a file, which was not edited since.
func isOwn(r *journal.Record, path string, text []byte) bool {
	return r.Created(path) && !r.Edited(path, text)
}

// parse parses a text as a file.
func parse(path, text string) (file, error) {
	d := disk{read: func(string, int) ([]byte, error) { return []byte(strings.TrimPrefix(text, "\n")), nil }}
	f, _, err := d.readOne(path, maxBytes)
	return f, err
}
