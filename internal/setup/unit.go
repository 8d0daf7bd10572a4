package setup

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// unitDirs returns systemd's directories of system units. The first one with a unit takes
// precedence (systemd.unit(5)).
func unitDirs() []string {
	return []string{
		"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
		"/lib/systemd/system",
	}
}

// execStart returns the last command of a unit with its drop-ins, and the command's file. It fails
// with fs.ErrNotExist if the unit is missing or masked.
func (h host) execStart(unit string) (args []string, file string, err error) {
	for _, path := range h.unitFiles(unit) {
		text, err := os.ReadFile(h.path(path))
		if err != nil {
			return nil, "", err
		}
		for _, command := range commands(string(text), "ExecStart") {
			args, file = words(command), path
			if len(args) > 0 {
				args[0] = strings.TrimLeft(args[0], "-@:+!|")
			}
		}
	}
	if len(args) == 0 {
		return nil, "", fmt.Errorf("the unit %s has no command: %w", unit, fs.ErrNotExist)
	}
	return args, file, nil
}

// unitFiles returns the paths of a unit and its drop-ins, in the order in which systemd reads them.
func (h host) unitFiles(unit string) []string {
	var files []string
	for _, dir := range unitDirs() {
		if path := filepath.Join(dir, unit); h.exists(path) {
			files = []string{path}
			break
		}
	}
	if len(files) == 0 {
		return nil
	}
	dropIns := make(map[string]string) // by name: the first directory takes precedence
	for _, dir := range slices.Backward(unitDirs()) {
		entries, err := os.ReadDir(h.path(filepath.Join(dir, unit+".d")))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") {
				dropIns[e.Name()] = filepath.Join(dir, unit+".d", e.Name())
			}
		}
	}
	names := make([]string, 0, len(dropIns))
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		files = append(files, dropIns[name])
	}
	return files
}

// commands returns the values of a key in a unit's file, with the empty ones, which reset the list.
func commands(text, key string) []string {
	var values []string
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		name, value, isSetting := strings.Cut(strings.TrimSpace(line), "=")
		if isSetting && strings.TrimSpace(name) == key {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

// words splits a command as systemd does, with quotes around whole words or parts of them.
func words(command string) []string {
	var found []string
	var word strings.Builder
	inWord := false
	var quote rune
	for _, r := range command {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case r == ' ' || r == '\t':
			if inWord {
				found = append(found, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if inWord {
		found = append(found, word.String())
	}
	return found
}
