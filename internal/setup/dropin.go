package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

const (
	// dropInDir is the directory next to the main file. containerd's default has imported it since
	// 2.2.
	dropInDir = "conf.d"
	// importComment ends the line that is added to the main file.
	importComment = "  # added by thinsnap setup"
)

// A Plan is a change of containerd's configuration that is not made yet.
type Plan struct {
	// Files are the files to write, in this order. It is empty if nothing changes.
	Files []journal.File
	// Notes are further notes for the user.
	Notes []string
	// Base and Planned are containerd's effective configuration before and after the change.
	Base, Planned Dump
	// later is true if k3s or RKE2 makes the change, at its next start.
	later bool
}

// Verify fails if containerd's effective configuration is not the planned one.
func (p Plan) Verify(ctx context.Context, c Containerd) error {
	if p.later {
		return nil
	}
	now, err := c.Dump(ctx, c.Config)
	if err != nil {
		return err
	}
	return checkPlan(p.Planned, now, nil)
}

// A planner plans a drop-in for one containerd.
type planner struct {
	Containerd
	release Release
	wish    Wish
	record  *journal.Record
	command string // the command that the files name

	files  []file // the present configuration, without the drop-in
	dropIn string // the path of the drop-in
	main   string // the planned text of the main file
}

// Plan returns the changes that add a proxy plugin to containerd: a drop-in that its configuration
// imports, and an import in the main file unless it has one. Plan runs `containerd config dump` on
// copies, and fails if anything else would change. record lists the set-up's own files, and command
// is named in them.
//
// Errors are those of Load and Dump. errdefs.ErrFailedPrecondition asks the user to decide, for
// example about an edited file. ErrNotFound and ErrNotImplemented are for a wish that this
// containerd does not support.
func (c Containerd) Plan(ctx context.Context, r Release, w Wish, record *journal.Record, command string) (Plan, error) {
	if err := w.validate(); err != nil {
		return Plan{}, err
	}
	p := planner{Containerd: c, release: r, wish: w, record: record, command: command}
	if err := p.read(); err != nil {
		return Plan{}, err
	}
	base, err := p.dump(ctx, p.files)
	if err != nil {
		return Plan{}, err
	}
	parts, err := w.parts(base, r)
	if err != nil {
		return Plan{}, err
	}
	plan := Plan{Base: base, Planned: base}
	before, err := readOptional(p.dropIn)
	if err != nil {
		return Plan{}, err
	}
	if len(parts) == 0 {
		return plan, nil
	}
	if before != nil && record.Edited(p.dropIn, before) {
		return Plan{}, fmt.Errorf("%s was edited since `%s` wrote it: move your lines to another file next to it, and run "+
			"`%s --undo` first: %w", p.dropIn, command, command, errdefs.ErrFailedPrecondition)
	}
	sections, notes := p.sections(parts)
	plan.Notes = notes
	text, err := render(p.head(), p.version(), sections)
	if err != nil {
		return Plan{}, err
	}
	planned, err := p.withDropIn(text)
	if err != nil {
		return Plan{}, err
	}
	if plan.Planned, err = p.dump(ctx, planned); err != nil {
		return Plan{}, fmt.Errorf("with the planned change: %w", err)
	}
	if err := checkPlan(base, plan.Planned, p.supported(parts)); err != nil {
		return Plan{}, fmt.Errorf("%s: %w", c.Config, err)
	}
	plan.Files = p.changes(before, text)
	return plan, nil
}

// read reads the present configuration, and decides where the drop-in goes.
func (p *planner) read() error {
	main, err := readOptional(p.Config)
	if err != nil {
		return err
	}
	if main == nil {
		if err := p.chooseName(filepath.Join(filepath.Dir(p.Config), dropInDir)); err != nil {
			return err
		}
		version := 2
		if p.release.AtLeast(2, 0) {
			version = 3
		}
		pattern, err := p.pattern()
		p.main = fmt.Sprintf("%sversion = %d\nimports = [%q]\n", p.head(), version, pattern)
		return err
	}
	all, err := onDisk().readAll(p.Config)
	if err != nil {
		return err
	}
	p.main = string(main)
	where := importsDirectory(p.Config, all[0].Imports)
	if err := p.chooseName(cmp.Or(where, filepath.Join(filepath.Dir(p.Config), dropInDir))); err != nil {
		return err
	}
	for _, f := range all {
		if f.path != p.dropIn {
			p.files = append(p.files, f)
		}
	}
	if where != "" || len(p.files) < len(all) {
		return nil
	}
	return p.addImport(all[0])
}

// chooseName decides the drop-in's name, which must be free or that of the set-up's own file.
func (p *planner) chooseName(dir string) error {
	for _, name := range []string{"thinsnap.toml", "thinsnap-setup.toml"} {
		p.dropIn = filepath.Join(dir, name)
		present, err := readOptional(p.dropIn)
		if err != nil || present == nil || p.record.Created(p.dropIn) {
			return err
		}
	}
	return fmt.Errorf("%s exists, and `%s` has no record of it: remove it, or configure containerd by hand: %w", p.dropIn,
		p.command, errdefs.ErrFailedPrecondition)
}

// importsDirectory returns a directory from which a file imports all files with names in .toml.
func importsDirectory(config string, imports []string) string {
	for _, path := range imports {
		path = filepath.Clean(path)
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(config), path)
		}
		dir, pattern := filepath.Split(path)
		if (pattern == "*.toml" || pattern == "*") && !strings.Contains(dir, "*") {
			return filepath.Clean(dir)
		}
	}
	return ""
}

// pattern returns the import for the main file: the drop-in's directory or, if that has other
// files, which were not imported before, only the drop-in.
func (p *planner) pattern() (string, error) {
	pattern := filepath.Join(filepath.Dir(p.dropIn), "*.toml")
	others, err := filepath.Glob(pattern)
	if slices.ContainsFunc(others, func(path string) bool { return path != p.dropIn }) {
		pattern = strings.TrimSuffix(p.dropIn, ".toml") + "*.toml"
	}
	return pattern, err
}

// addImport plans the main file's import.
func (p *planner) addImport(main file) error {
	pattern, err := p.pattern()
	if err != nil {
		return err
	}
	e, err := newEditor(main)
	if err != nil {
		return err
	}
	e.addImport(pattern, importComment)
	changed, err := e.verified()
	p.main = string(changed)
	return err
}

// dump has containerd read copies of the files. Without files it prints containerd's defaults.
func (p *planner) dump(ctx context.Context, files []file) (Dump, error) {
	if len(files) == 0 {
		return p.defaults(ctx)
	}
	dir, err := os.MkdirTemp("", "thinsnap-setup-")
	if err != nil {
		return Dump{}, err
	}
	d, err := p.dumpIn(ctx, dir, files)
	return d, errors.Join(err, os.RemoveAll(dir))
}

// dumpIn writes the files into a directory, in the order in which containerd reads them. The first
// one imports the others.
func (p *planner) dumpIn(ctx context.Context, dir string, files []file) (Dump, error) {
	paths := make([]string, len(files))
	for i := range files {
		paths[i] = filepath.Join(dir, fmt.Sprintf("%d.toml", i))
	}
	for i, f := range files {
		e, err := newEditor(f)
		if err != nil {
			return Dump{}, err
		}
		var imports []string
		if i == 0 {
			imports = paths[1:]
		}
		e.setImports(imports)
		text, err := e.verified()
		if err != nil {
			return Dump{}, err
		}
		if err := os.WriteFile(paths[i], text, 0o600); err != nil {
			return Dump{}, err
		}
	}
	d, err := p.Dump(ctx, paths[0])
	if err == nil {
		return d, nil
	}
	names := make([]string, 0, 2*len(files))
	for i, f := range files {
		names = append(names, paths[i], f.path)
	}
	return d, &reworded{err, strings.NewReplacer(names...).Replace(err.Error())}
}

// reworded is an error with another text, which names files in place of their copies, or has no
// secrets.
type reworded struct {
	error
	text string
}

func (e *reworded) Error() string { return e.text }
func (e *reworded) Unwrap() error { return e.error }

// withoutSecrets masks secrets that a program quotes from its configuration.
func withoutSecrets(err error) error {
	if err == nil {
		return nil
	}
	return &reworded{err, string(Masked([]byte(err.Error())))}
}

// withDropIn returns the files, with the planned ones, in the order in which containerd reads them.
func (p *planner) withDropIn(text string) ([]file, error) {
	d := disk{
		read: func(path string, most int) ([]byte, error) {
			switch path {
			case p.Config:
				return []byte(p.main), nil
			case p.dropIn:
				return []byte(text), nil
			}
			return readBounded(path, most)
		},
		glob: func(pattern string) ([]string, error) {
			paths, err := filepath.Glob(pattern)
			matches, _ := filepath.Match(pattern, p.dropIn)
			if matches && !slices.Contains(paths, p.dropIn) {
				paths = append(paths, p.dropIn)
				slices.Sort(paths)
			}
			return paths, err
		},
	}
	return d.readAll(p.Config)
}

// head is the comment at the top of the set-up's own files.
func (p *planner) head() string {
	return fmt.Sprintf("# Written by `%[1]s`. `%[1]s --undo` removes it, unless it was edited.\n", p.command)
}

// isFirst reports whether containerd 1.x uses version 1 names for plugins.
func (p *planner) isFirst() bool {
	m, ok := merge1(p.files)
	return !p.release.AtLeast(2, 0) && ok && m.devmapper == devmapperName && len(p.files) > 0
}

// version returns the drop-in's version, or 0 for none. In 1.x the last file's version applies to
// all files.
func (p *planner) version() int {
	switch {
	case p.release.AtLeast(2, 0):
		return 3
	case p.isFirst():
		return 0
	}
	return 2
}

// sections returns the sections of the drop-in, and notes on settings that it cannot have.
func (p *planner) sections(parts []part) ([]block, []string) {
	if p.release.AtLeast(2, 0) {
		return asSections(parts), nil
	}
	var found []block
	var notes []string
	merged, _ := merge1(p.files)
	repeated := make(map[string]map[string]any)
	for _, x := range p.supported(parts) {
		if x.key[0] != "plugins" {
			found = append(found, asSections([]part{x})...)
			continue
		}
		name := x.key[1]
		if p.isFirst() {
			name = criName
		}
		if repeated[name] == nil {
			repeated[name] = deepCopy(merged.plugins[name])
		}
		set(repeated[name], x.value, x.key[2:])
	}
	if len(p.supported(parts)) < len(parts) {
		notes = append(notes, fmt.Sprintf("%s has version 1, in which the transfer service's list of snapshotters cannot be "+
			"set: pull with `ctr image pull --local`", p.Config))
	}
	for _, name := range slices.Sorted(maps.Keys(repeated)) {
		comment := ""
		if merged.plugins[name] != nil {
			comment = fmt.Sprintf("containerd 1.x takes a plugin's section from the last file that has it, so this one has all "+
				"of it.\nAfter a change of the section in another file, run `%s` again.", p.command)
		}
		found = append(found, block{[]string{"plugins", name}, repeated[name], comment})
	}
	return found, notes
}

// supported returns the parts that the configuration's version supports.
func (p *planner) supported(parts []part) []part {
	if !p.isFirst() {
		return parts
	}
	return slices.DeleteFunc(slices.Clone(parts), func(x part) bool {
		return x.key[0] == "plugins" && x.key[1] == transferURI
	})
}

func asSections(parts []part) []block {
	var found []block
	for _, x := range parts {
		key, value := x.key, x.value
		if !isTables(value) {
			last := len(key) - 1
			key, value = key[:last], map[string]any{key[last]: value}
		}
		found = append(found, block{key, value, x.reason})
	}
	return found
}

// deepCopy returns a deep copy of a table, or an empty one.
func deepCopy(value any) map[string]any {
	table := make(map[string]any)
	if from, isTable := value.(map[string]any); isTable {
		mergeTables(table, from)
	}
	return table
}

func set(table map[string]any, value any, key []string) {
	for _, part := range key[:len(key)-1] {
		inner, isTable := table[part].(map[string]any)
		if !isTable {
			inner = make(map[string]any)
			table[part] = inner
		}
		table = inner
	}
	table[key[len(key)-1]] = value
}

// changes returns the files that change. The drop-in comes before the line that imports it.
func (p *planner) changes(before []byte, text string) []journal.File {
	var files []journal.File
	if string(before) != text {
		files = append(files, journal.File{Path: p.dropIn, Before: before, After: []byte(text), Mode: p.mode()})
	}
	main, err := readOptional(p.Config)
	if err == nil && string(main) != p.main {
		files = append(files, journal.File{Path: p.Config, Before: main, After: []byte(p.main)})
	}
	return files
}

// mode returns the permissions that all files have in common, because the drop-in may repeat a
// section with a registry's password from any of them. It is 0 if there are no files.
func (p *planner) mode() fs.FileMode {
	if len(p.files) == 0 {
		return 0
	}
	mode := fs.ModePerm
	for _, f := range p.files {
		if info, err := os.Stat(f.path); err == nil {
			mode &= info.Mode().Perm()
		}
	}
	return mode | 0o400
}

// readOptional returns nil for a missing file.
func readOptional(path string) ([]byte, error) {
	text, err := readBounded(path, maxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read containerd's configuration: %w", err)
	}
	return append([]byte{}, text...), nil
}
