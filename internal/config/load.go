package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// Parse reads and checks the text of a file. Missing keys have their default. An *Error has all unknown
// keys and invalid values; after an error in the syntax nothing can be read.
func Parse(text []byte) (Config, error) {
	var problems []error
	for {
		cfg := Default()
		cfg.Pool.Mode = ""
		err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&cfg)
		// A file of another version may have other keys. The version is then the better error.
		if problem := checkVersion(cfg.Version); err != nil && problem != nil {
			return Config{}, &Error{Problems: []error{problem}}
		}
		problems = append(problems, readProblems(err)...)
		rest, more := withoutValue(text, err)
		if more {
			text = rest
			continue
		}
		if err != nil && !isUnknownKey(err) {
			return Config{}, &Error{Problems: problems}
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

// withoutValue returns the text without the value that err is about, so that the rest can be read. It
// returns false if err is not about a value.
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

// removed says what to do instead of a key or table that earlier versions had, "" for others.
func removed(key string) string {
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

// readProblems converts the errors of go-toml to one line for each place in the file.
func readProblems(err error) []error {
	if err == nil {
		return nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		problems := make([]error, 0, len(unknown.Errors))
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			key := strings.Join(unknown.Errors[i].Key(), ".")
			if instead := removed(key); instead != "" {
				key += ": " + instead
			}
			problems = append(problems, fmt.Errorf("line %d: unknown key %s", line, key))
		}
		return problems
	}
	var place *toml.DecodeError
	if !errors.As(err, &place) {
		return []error{err}
	}
	line, _ := place.Position()
	text := strings.TrimPrefix(place.Error(), "toml: ")
	if key := strings.Join(place.Key(), "."); key != "" {
		return []error{fmt.Errorf("line %d: %s: %s", line, key, text)}
	}
	return []error{fmt.Errorf("line %d: %s", line, text)}
}
