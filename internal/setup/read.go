package setup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

const (
	// maxBytes of all files, maxFiles and maxDepth limit the input. Real configurations have about
	// 10 KiB, and at most six levels of tables.
	maxBytes = 1 << 20
	maxFiles = 256
	maxDepth = 64
	// maxVersion is containerd's version.ConfigVersion, since 2.3.
	maxVersion = 4
)

// file has the keys of one file that are used here.
type file struct {
	path     string
	text     []byte
	Version  int              `toml:"version"`
	Root     string           `toml:"root"`
	State    string           `toml:"state"`
	Imports  []string         `toml:"imports"`
	Disabled []string         `toml:"disabled_plugins"`
	Plugins  map[string]any   `toml:"plugins"`
	Proxies  map[string]Proxy `toml:"proxy_plugins"`
	GRPC     struct {
		Address string `toml:"address"`
	} `toml:"grpc"`
}

// disk reads files. Tests replace it.
type disk struct {
	// read fails if the file is larger than most bytes.
	read func(path string, most int) ([]byte, error)
	glob func(pattern string) ([]string, error)
}

// readBounded reads a file, and fails if it is larger than most bytes.
func readBounded(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(text) > most {
		err = tooMuch(path)
	}
	return text, err
}

func tooMuch(path string) error {
	return fmt.Errorf("%s: containerd's configuration is larger than %d bytes or %d files: give one file that has the "+
		"plugin's section, without imports: %w", path, maxBytes, maxFiles, errdefs.ErrInvalidArgument)
}

// readAll reads the file and all imports, breadth first and each path once, as LoadConfig does in
// all releases of containerd.
func (d disk) readAll(path string) ([]file, error) {
	var files []file
	loaded := make(map[string]bool)
	importer := make(map[string]string)
	left := maxBytes
	for pending := []string{path}; len(pending) > 0; pending = pending[1:] {
		next := pending[0]
		if loaded[next] {
			continue
		}
		loaded[next] = true
		if len(files) == maxFiles {
			return nil, tooMuch(next)
		}
		f, size, err := d.readOne(next, left)
		left -= size
		if err != nil {
			return nil, withRemedy(err, importer[next])
		}
		imports, err := d.resolve(next, f.Imports)
		if err != nil {
			return nil, err
		}
		for _, name := range imports {
			if importer[name] == "" {
				importer[name] = next
			}
		}
		files = append(files, f)
		pending = append(pending, imports...)
	}
	return files, nil
}

// withRemedy completes the error of the first file or of an imported file.
func withRemedy(err error, importer string) error {
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case importer == "" && missing:
		return fmt.Errorf("%w: name the file that containerd reads (its option --config; the default is "+
			"/etc/containerd/config.toml): %w", err, errdefs.ErrNotFound)
	case missing:
		return fmt.Errorf("%w: %s imports it, and containerd does not start without it: restore the file, or remove the "+
			"import: %w", err, importer, errdefs.ErrNotFound)
	case importer != "":
		return fmt.Errorf("imported by %s: %w", importer, err)
	}
	return err
}

func (d disk) readOne(path string, most int) (f file, size int, err error) {
	text, err := d.read(path, most)
	if err != nil {
		return file{}, 0, fmt.Errorf("read containerd's configuration: %w", err)
	}
	f.path, f.text = path, text
	if err := toml.Unmarshal(text, &f); err != nil {
		return file{}, 0, fmt.Errorf("%s: %s: correct it, because containerd cannot read it either: %w", path, place(err),
			errdefs.ErrInvalidArgument)
	}
	if f.Version < 0 || f.Version > maxVersion {
		return file{}, 0, fmt.Errorf("%s: version = %d: not supported: this version of thinsnap reads versions 1 to %d of "+
			"containerd's configuration: %w", path, f.Version, maxVersion, errdefs.ErrNotImplemented)
	}
	if tooDeep(f.Plugins, maxDepth) {
		return file{}, 0, fmt.Errorf("%s: tables are nested more than %d levels deep: remove them: %w", path, maxDepth,
			errdefs.ErrInvalidArgument)
	}
	return f, len(text), nil
}

// place formats an error of go-toml in one line, with its position in the file.
func place(err error) string {
	text := strings.TrimPrefix(err.Error(), "toml: ")
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return text
	}
	line, _ := at.Position()
	if key := strings.Join(at.Key(), "."); key != "" {
		text = fmt.Sprintf("%q: %s", key, text)
	}
	return fmt.Sprintf("line %d: %s", line, text)
}

// tooDeep reports whether a value has more than left levels of tables or lists. go-toml limits only
// the nesting of braces and brackets.
func tooDeep(value any, left int) bool {
	if left < 0 {
		return true
	}
	switch v := value.(type) {
	case map[string]any:
		for _, inner := range v {
			if tooDeep(inner, left-1) {
				return true
			}
		}
	case []any:
		for _, inner := range v {
			if tooDeep(inner, left-1) {
				return true
			}
		}
	}
	return false
}

// resolve returns the paths of imports, as resolveImports does in all releases of containerd
// (cmd/containerd/server/config/config.go): only an asterisk makes a pattern.
func (d disk) resolve(parent string, imports []string) ([]string, error) {
	var paths []string
	for _, path := range imports {
		path = filepath.Clean(path)
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(parent), path)
		}
		if !strings.Contains(path, "*") {
			paths = append(paths, path)
			continue
		}
		matches, err := d.glob(path)
		if err != nil {
			return nil, fmt.Errorf("%s: imports has %q: %w: correct the pattern, because containerd cannot read it "+
				"either: %w", parent, path, err, errdefs.ErrInvalidArgument)
		}
		paths = append(paths, matches...)
	}
	return paths, nil
}
