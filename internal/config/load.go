package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Load reads and checks a file, which must exist. Problems are returned as an *Error that names the
// file.
func Load(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	cfg, err := Parse(text)
	if err != nil {
		return Config{}, inFile(err, file)
	}
	return cfg, nil
}

// LoadOptional is Load for a file that may be missing. It then returns Default.
func LoadOptional(file string) (Config, error) {
	cfg, err := Load(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	return cfg, err
}

// Parse reads and checks the text of a file. Missing keys have their default. An *Error has all
// unknown keys and invalid values, in the order of the file where they have a line. With an *Error
// it also returns the values that could be read: none after a syntax error.
func Parse(text []byte) (Config, error) {
	var found []placed
	for {
		cfg := Default()
		cfg.Pool.Mode = ""
		err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&cfg)
		// Report only the version, because a file of another version may have other keys.
		if problem := checkVersion(cfg.Version); err != nil && problem != nil {
			return Config{}, &Error{Problems: []error{problem}}
		}
		found = append(found, readProblems(err)...)
		rest, more := withoutValue(text, err)
		if more {
			text = rest
			continue
		}
		slices.SortStableFunc(found, func(a, b placed) int { return cmp.Compare(a.line, b.line) })
		var problems []error
		for _, p := range found {
			problems = append(problems, p.problem)
		}
		if err != nil && !isUnknownKey(err) {
			return Config{}, &Error{Problems: problems}
		}
		if len(found) > 0 {
			// An unreadable value has its default here. A client's name and address have no
			// default, so a client without one of them is not checked.
			cfg.Clients = slices.DeleteFunc(cfg.Clients, func(c Client) bool { return c.Name == "" || c.Address == "" })
		}
		cfg.Pool.chooseMode()
		var invalid *Error
		if errors.As(cfg.Validate(), &invalid) {
			problems = append(problems, invalid.Problems...)
		}
		if len(problems) > 0 {
			return cfg, &Error{Problems: problems}
		}
		return cfg, nil
	}
}

func isUnknownKey(err error) bool {
	var unknown *toml.StrictMissingError
	return errors.As(err, &unknown)
}

// withoutValue returns the text without the value that err is about, so that the rest can be read.
// It returns false if err is not about a value.
func withoutValue(text []byte, err error) (rest []byte, ok bool) {
	var place *toml.DecodeError
	if isUnknownKey(err) || !errors.As(err, &place) || !isTOML(text) {
		return nil, false
	}
	first, _ := place.Position()
	lines := bytes.SplitAfter(bytes.Clone(text), []byte("\n"))
	// A value may have several lines.
	for i := first - 1; i < len(lines); i++ {
		lines[i] = []byte("\n")
		if rest := bytes.Join(lines, nil); isTOML(rest) {
			return rest, true
		}
	}
	return nil, false
}

func isTOML(text []byte) bool {
	var values map[string]any
	return toml.Unmarshal(text, &values) == nil
}

// replacement describes the replacement of a key or table of earlier versions. It returns "" for
// others.
func replacement(key string) string {
	switch key {
	case "pool.loop.data_limit":
		return "remove it: pool.loop.data_size is the size up to which the pool grows by itself"
	case "spares", "spares.most":
		return "use spares_max in [pool] instead of most in [spares]"
	case "remove", "remove.discard":
		return "use discard_on_remove in [pool] instead of discard in [remove]"
	}
	return ""
}

// placed is a problem with a place in the file.
type placed struct {
	line    int
	problem error
}

// at returns a problem in a line of the file.
func at(line int, format string, args ...any) placed {
	return placed{line, fmt.Errorf("line %d: "+format, append([]any{line}, args...)...)}
}

// readProblems converts the errors of go-toml to one problem for each place in the file.
func readProblems(err error) []placed {
	if err == nil {
		return nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		problems := make([]placed, 0, len(unknown.Errors))
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			key := strings.Join(unknown.Errors[i].Key(), ".")
			if instead := replacement(key); instead != "" {
				key += ": " + instead
			}
			problems = append(problems, at(line, "unknown key %s", key))
		}
		return problems
	}
	var place *toml.DecodeError
	if !errors.As(err, &place) {
		return []placed{{0, err}}
	}
	line, _ := place.Position()
	text := strings.TrimPrefix(place.Error(), "toml: ")
	key := strings.Join(place.Key(), ".")
	switch {
	case key == "":
		return []placed{at(line, "%s", text)}
	case isAboutGo(text):
		return []placed{at(line, "%s: must be %s%s", key, ruleOf(key), actualType(text))}
	}
	return []placed{at(line, "%s: %s", key, text)}
}

// ofWrongType matches go-toml's error for a value of another type than the Go field's.
var ofWrongType = regexp.MustCompile(`cannot decode TOML ([a-z ]+?)s? into`)

// isAboutGo reports whether an error text of go-toml names Go types, and so does not come from this
// package.
func isAboutGo(text string) bool {
	return ofWrongType.MatchString(text) || strings.Contains(text, "cannot be stored in") ||
		strings.Contains(text, "struct field")
}

// actualType names the type of the value.
func actualType(text string) string {
	found := ofWrongType.FindStringSubmatch(text)
	if found == nil {
		return ""
	}
	switch kind := found[1]; kind {
	case "integer", "array":
		return ", not an " + kind
	default:
		return ", not a " + kind
	}
}

// ruleOf is the rule of a key, or that of a table if name is not a key.
func ruleOf(name string) string {
	for _, s := range sections() {
		for _, k := range s.keys {
			if k.name == name {
				return k.allowed
			}
		}
	}
	return "a table"
}
