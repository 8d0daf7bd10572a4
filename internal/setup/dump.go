package setup

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// A Dump is containerd's effective configuration: the output of `containerd config dump`.
type Dump struct {
	Root  string `toml:"root"`
	State string `toml:"state"`
	// Disabled are the plugins in disabled_plugins.
	Disabled []string `toml:"disabled_plugins"`
	// Plugins are the sections of all compiled-in plugins, with their defaults.
	Plugins map[string]any `toml:"plugins"`
	// Proxies are the proxy plugins of every type, by name.
	Proxies map[string]Proxy `toml:"proxy_plugins"`

	all map[string]any
}

// Dump runs `containerd config dump` with a file, which need not be c.Config. It fails with
// errdefs.ErrInvalidArgument if the output is not TOML. Other errors have containerd's message
// about the file.
func (c Containerd) Dump(ctx context.Context, config string) (Dump, error) {
	return c.printed(ctx, "--config", config, "config", "dump")
}

// defaults runs `containerd config default`, which prints the defaults without a file.
func (c Containerd) defaults(ctx context.Context) (Dump, error) {
	return c.printed(ctx, "config", "default")
}

func (c Containerd) printed(ctx context.Context, args ...string) (Dump, error) {
	out, err := c.execute(ctx, args...)
	if err != nil {
		return Dump{}, err
	}
	var d Dump
	err = toml.Unmarshal(out, &d)
	if err == nil {
		err = toml.Unmarshal(out, &d.all)
	}
	if err == nil {
		sortImports(d.all)
		return d, nil
	}
	return Dump{}, fmt.Errorf("%s %s: the output is not TOML: %s: %w", c.Executable, strings.Join(args, " "), place(err),
		errdefs.ErrInvalidArgument)
}

// sortImports sorts the list of imported files, which 1.x prints in random order.
func sortImports(all map[string]any) {
	if imports, isList := all[importsKey].([]any); isList {
		slices.SortFunc(imports, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
}

// Uses returns the keys that name a snapshotter, in all plugin sections, sorted.
func (d Dump) Uses() []Use { return uses(d.Plugins) }

// Section returns a table of the output by its key, or nil.
func (d Dump) Section(key string) any { return d.all[key] }
