package setup

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Load reads containerd's configuration and its imports. It fails if containerd would not start its
// built-in devmapper snapshotter with it, or if containerd 1.x and 2.x would start it differently.
//
// Errors match errdefs.ErrNotFound, ErrInvalidArgument, ErrNotImplemented for an unknown version,
// and ErrFailedPrecondition if the releases differ; or they come from the operating system.
func Load(path string) (Config, error) { return onDisk().load(path) }

func onDisk() disk { return disk{readBounded, filepath.Glob} }

func (d disk) load(path string) (Config, error) {
	files, err := d.readAll(path)
	if err != nil {
		return Config{}, err
	}
	cfg, err := choose(files)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	cfg.Version = max(files[0].Version, 1)
	for _, f := range files {
		cfg.Files = append(cfg.Files, f.path)
	}
	return cfg, nil
}

// choose merges the files by the rules of each release that can read them, and chooses the result
// with which the built-in starts.
func choose(files []file) (Config, error) {
	second, err := merge2(files)
	if err != nil {
		return Config{}, err
	}
	cfg2, err2 := second.config()
	first, ok := merge1(files)
	if !ok {
		return cfg2, err2
	}
	cfg1, err1 := first.config()
	if err1 == nil && err2 == nil {
		return agreed(cfg1, cfg2)
	}
	if err1 == nil {
		cfg1.Only = "1.x"
		return cfg1, nil
	}
	cfg2.Only = "2.x"
	return cfg2, err2
}

// agreed returns the configuration of 2.x, if 1.x would start the built-in in the same way.
func agreed(cfg1, cfg2 Config) (Config, error) {
	differ := cfg1.Devmapper.differences(cfg2.Devmapper)
	if len(differ) == 0 {
		return cfg2, nil
	}
	return Config{}, fmt.Errorf("containerd 1.x replaces a plugin's whole section by that of an import, and 2.x merges "+
		"them, so that they do not agree on %s: write the section in one file, or give the output of `containerd config "+
		"dump` without the key imports: %w", strings.Join(differ, ", "), errdefs.ErrFailedPrecondition)
}

// differences returns the keys that differ, with both values.
func (d Devmapper) differences(other Devmapper) []string {
	var keys []string
	one, two := reflect.ValueOf(d), reflect.ValueOf(other)
	for i := range one.NumField() {
		key := one.Type().Field(i).Tag.Get("toml")
		if key != "-" && !one.Field(i).Equal(two.Field(i)) {
			keys = append(keys, fmt.Sprintf("%s (1.x has %#v, 2.x %#v)", key, one.Field(i), two.Field(i)))
		}
	}
	return keys
}

// config reads the sections of a merged configuration.
func (m merged) config() (Config, error) {
	cfg := Config{Root: m.root, State: m.state, Proxies: m.proxies, Uses: uses(m.plugins)}
	d, err := readDevmapper(m.plugins[m.devmapper])
	if err != nil {
		return Config{}, fmt.Errorf("[plugins.%q]: %s: correct it, because containerd cannot read it either: %w",
			m.devmapper, place(err), errdefs.ErrInvalidArgument)
	}
	if err := d.complete(m.root); err != nil {
		return Config{}, err
	}
	d.Disabled = slices.Contains(m.disabled, m.devmapper)
	cfg.Devmapper = d
	return cfg, nil
}

// readDevmapper decodes a section as containerd's Config.Decode does, which ignores unknown keys.
func readDevmapper(section any) (Devmapper, error) {
	var d Devmapper
	if section == nil {
		return d, nil
	}
	if _, isTable := section.(map[string]any); !isTable {
		return d, errors.New("it must be a table")
	}
	text, err := toml.Marshal(section)
	if err != nil {
		return d, err
	}
	err = toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(&d)
	var unknown *toml.StrictMissingError
	if !errors.As(err, &unknown) {
		return d, err
	}
	d = Devmapper{}
	for i := range unknown.Errors {
		d.Unknown = append(d.Unknown, strings.Join(unknown.Errors[i].Key(), "."))
	}
	slices.Sort(d.Unknown)
	d.Unknown = slices.Compact(d.Unknown)
	return d, toml.Unmarshal(text, &d)
}
