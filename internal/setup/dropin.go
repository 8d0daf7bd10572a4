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
	// dropInDir is the directory beside the main file, as containerd's own defaults name it since 2.2.
	dropInDir = "conf.d"
	// importComment is on the line that the main file gets.
	importComment = "  # added by thinsnap setup"
)

// A Plan is a change of containerd's configuration that has not been made.
type Plan struct {
	// Files are to be written in this order. Without any, there is nothing to do.
	Files []journal.File
	// Notes are what the user has to know beyond the files.
	Notes []string
	// Base and Planned are what containerd makes of the files before and after.
	Base, Planned Dump
	// later is true if the program that starts containerd makes the change, at its next start.
	later bool
}

// Verify fails if containerd does not make of its configuration what was planned.
func (p Plan) Verify(ctx context.Context, c Containerd) error {
	if p.later {
		return nil
	}
	now, err := c.Dump(ctx, c.Config)
	if err != nil {
		return err
	}
	return meant(p.Planned, now, nil)
}

// A planner plans a drop-in for one containerd.
type planner struct {
	Containerd
	release Release
	wish    Wish
	record  *journal.Record
	command string // that the files name

	files  []file // the configuration in use, without the drop-in
	dropIn string // the path of the drop-in
	main   string // what the main file shall be
}

// Plan returns what gives containerd a proxy plugin: a file that its configuration imports, and one line
// in the main file if that imports no such file. It executes `containerd config dump` on copies, and
// fails if anything would change that was not meant. Record says which files are the set-up's own, and
// command is named in them. Errors are those of Load and Dump; FailedPrecondition for what the user has
// to decide, such as a file that was edited since; NotFound and NotImplemented for a wish that this
// containerd cannot have.
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
		return Plan{}, fmt.Errorf("%s was edited since `%s` wrote it: move your lines to a file of your own beside it, and run "+
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
	if err := meant(base, plan.Planned, p.kept(parts)); err != nil {
		return Plan{}, fmt.Errorf("%s: %w", c.Config, err)
	}
	plan.Files = p.changes(before, text)
	return plan, nil
}

// read reads the configuration in use, and decides where the drop-in is.
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

// chooseName decides the drop-in's name: that of a file which is the set-up's own, or of none.
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

// importsDirectory returns a directory of which a file imports all files whose names end in .toml.
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

// pattern returns what the main file imports: all of the drop-in's directory, or only the drop-in if that
// has other files, which were not imported before.
func (p *planner) pattern() (string, error) {
	pattern := filepath.Join(filepath.Dir(p.dropIn), "*.toml")
	others, err := filepath.Glob(pattern)
	if slices.ContainsFunc(others, func(path string) bool { return path != p.dropIn }) {
		pattern = strings.TrimSuffix(p.dropIn, ".toml") + "*.toml"
	}
	return pattern, err
}

// addImport plans the line of the main file.
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

// dump has containerd read copies of files. Without files it prints its defaults.
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

// dumpIn writes the files into a directory, the first with the others as its imports, in the order in
// which containerd reads them.
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

// reworded is an error with another text: that names files in place of their copies, or has no secrets.
type reworded struct {
	error
	text string
}

func (e *reworded) Error() string { return e.text }
func (e *reworded) Unwrap() error { return e.error }

// withoutSecrets masks what a program's complaint about its configuration quotes of it.
func withoutSecrets(err error) error {
	if err == nil {
		return nil
	}
	return &reworded{err, string(Masked([]byte(err.Error())))}
}

// withDropIn returns the files in the order in which containerd reads them, with the planned ones.
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

// head is the comment at the beginning of files that are the set-up's own.
func (p *planner) head() string {
	return fmt.Sprintf("# Written by `%[1]s`. `%[1]s --undo` removes it, unless it was edited.\n", p.command)
}

// isFirst returns true if containerd 1.x reads plugins by the names of version 1 of its configuration.
func (p *planner) isFirst() bool {
	m, ok := merge1(p.files)
	return !p.release.AtLeast(2, 0) && ok && m.devmapper == devmapperName && len(p.files) > 0
}

// version returns that of the drop-in, 0 for none. In 1.x the last file's counts for all files.
func (p *planner) version() int {
	switch {
	case p.release.AtLeast(2, 0):
		return 3
	case p.isFirst():
		return 0
	}
	return 2
}

// sections returns what the drop-in has, and notes on what it cannot have.
func (p *planner) sections(parts []part) ([]block, []string) {
	if p.release.AtLeast(2, 0) {
		return asSections(parts), nil
	}
	var found []block
	var notes []string
	merged, _ := merge1(p.files)
	repeated := make(map[string]map[string]any)
	for _, x := range p.kept(parts) {
		if x.key[0] != "plugins" {
			found = append(found, asSections([]part{x})...)
			continue
		}
		name := x.key[1]
		if p.isFirst() {
			name = criName
		}
		if repeated[name] == nil {
			repeated[name] = copied(merged.plugins[name])
		}
		set(repeated[name], x.value, x.key[2:])
	}
	if len(p.kept(parts)) < len(parts) {
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

// kept returns the parts that the configuration's version can have.
func (p *planner) kept(parts []part) []part {
	if !p.isFirst() {
		return parts
	}
	return slices.DeleteFunc(slices.Clone(parts), func(x part) bool {
		return x.key[0] == "plugins" && x.key[1] == transferURI
	})
}

// asSections returns a section for each part.
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

// copied returns a deep copy of a table, or an empty one.
func copied(value any) map[string]any {
	table := make(map[string]any)
	if from, isTable := value.(map[string]any); isTable {
		mergeTables(table, from)
	}
	return table
}

// set sets a value in tables within one another.
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

// changes returns the files whose contents differ, the drop-in before the line that imports it.
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

// mode returns the permissions that all files have, because the drop-in may repeat a section of any of them
// with a registry's password. It is 0 if there are no files.
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

// readOptional returns nil for a file that is missing.
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
