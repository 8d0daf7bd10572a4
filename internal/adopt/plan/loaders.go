package plan

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The limits of the search for loaders.
const (
	loaderBytes = 1 << 20 // per file
	loaderDepth = 4       // directories below one of loaderPlaces
	loaderFiles = 20_000
	loaderAll   = 256 << 20 // in all files
)

// loaderPlaces returns the places of programs and scripts that run at boot.
func loaderPlaces() []string {
	return []string{
		"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "run/systemd/system", "etc/rc.local",
		"etc/rc.d", "etc/init.d", "etc/local.d", "etc/crontab", "etc/cron.d", "etc/cron.hourly", "etc/cron.daily",
		"etc/default", "etc/sysconfig", "var/spool/cron", "usr/local/bin", "usr/local/sbin", "usr/local/lib/systemd/system",
		"opt",
	}
}

// loaders returns the text files below a root directory that may load the pool's table with
// skip_block_zeroing at boot: they contain the pool's name and that word. It also searches the files
// that units start.
func loaders(ctx context.Context, root, poolName string) []string {
	s := &loaderSearch{ctx: ctx, root: root, pool: []byte(poolName), seen: make(map[string]bool)}
	for _, place := range loaderPlaces() {
		s.walk(place)
	}
	for i := 0; i < len(s.started); i++ {
		s.search(s.started[i])
	}
	slices.Sort(s.found)
	return s.found
}

type loaderSearch struct {
	ctx     context.Context
	root    string
	pool    []byte
	files   int
	bytes   int64
	seen    map[string]bool // resolved paths
	started []string        // paths that units start
	found   []string
}

// walk searches the files at and below a place. It does not follow links to directories. A linked
// unit is also found under its own name.
func (s *loaderSearch) walk(place string) {
	top := filepath.Join(s.root, place)
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		below, _ := filepath.Rel(top, path)
		switch {
		case s.ctx.Err() != nil || s.files >= loaderFiles:
			return fs.SkipAll
		case err != nil:
			return fs.SkipDir
		case d.IsDir() && strings.Count(below, string(filepath.Separator)) >= loaderDepth:
			return fs.SkipDir
		case !d.IsDir():
			s.search("/" + strings.TrimPrefix(strings.TrimPrefix(path, s.root), "/"))
		}
		return nil
	})
}

// search searches a file, given by its path below the root.
func (s *loaderSearch) search(path string) {
	resolved, err := filepath.EvalSymlinks(filepath.Join(s.root, path))
	if err != nil || s.seen[resolved] {
		return
	}
	s.seen[resolved] = true
	s.files++
	info, err := os.Stat(resolved)
	if err != nil || !info.Mode().IsRegular() || info.Size() > loaderBytes || s.bytes+info.Size() > loaderAll {
		return
	}
	s.bytes += info.Size()
	text, err := os.ReadFile(resolved)
	if err != nil || bytes.IndexByte(text, 0) >= 0 {
		return // a binary file
	}
	if bytes.Contains(text, []byte("skip_block_zeroing")) && bytes.Contains(text, s.pool) {
		s.found = append(s.found, path)
	}
	for line := range strings.Lines(string(text)) {
		key, command, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || !strings.HasPrefix(key, "Exec") || len(s.started) >= loaderFiles {
			continue
		}
		for word := range strings.FieldsSeq(command) {
			if word = strings.Trim(word, `-@:+!"';`); strings.HasPrefix(word, "/") {
				s.started = append(s.started, word)
			}
		}
	}
}
