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

// Parse reads and checks the text of a file. Missing keys have their default. An unknown key or an
// invalid value is returned as an *Error.
func Parse(text []byte) (Config, error) {
	cfg := Default()
	cfg.Pool.Mode = ""
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&cfg)
	if err == nil {
		cfg.Pool.chooseMode()
		return cfg, cfg.Validate()
	}
	// A file of another version may have other keys. The version is then the better error.
	if problem := checkVersion(cfg.Version); problem != nil {
		return Config{}, &Error{Problems: []error{problem}}
	}
	return Config{}, &Error{Problems: readProblems(err)}
}

// readProblems converts the errors of go-toml to one line for each place in the file.
func readProblems(err error) []error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		problems := make([]error, 0, len(unknown.Errors))
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			problems = append(problems, fmt.Errorf("line %d: unknown key %s", line, strings.Join(unknown.Errors[i].Key(), ".")))
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
