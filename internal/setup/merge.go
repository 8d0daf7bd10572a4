package setup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

type merged struct {
	root, state string
	plugins     map[string]any
	disabled    []string
	proxies     map[string]Proxy
	devmapper   string // the key of the built-in in plugins and disabled
}

func newMerged() merged {
	return merged{
		root: defaultRoot, state: defaultState, devmapper: devmapperURI,
		plugins: make(map[string]any), proxies: make(map[string]Proxy),
	}
}

// add merges everything except the plugins. All releases do that alike.
func (m *merged) add(f file, disabled []string) {
	if f.Root != "" {
		m.root = f.Root
	}
	if f.State != "" {
		m.state = f.State
	}
	m.disabled = append(m.disabled, disabled...)
	maps.Copy(m.proxies, f.Proxies)
}

// merge1 merges as containerd 1.6 and 1.7 do (services/server/config/config.go: mergeConfig): the
// last section of a plugin applies, and the last version decides the plugins' names. It returns
// false if these releases reject the configuration.
func merge1(files []file) (merged, bool) {
	m := newMerged()
	version := 1
	for _, f := range files {
		if f.Version > 2 {
			return m, false
		}
		if f.Version != 0 {
			version = f.Version
		}
		m.add(f, f.Disabled)
		maps.Copy(m.plugins, f.Plugins)
	}
	if version == 1 {
		m.devmapper = devmapperName
		return m, true
	}
	isShort := func(name string) bool { return strings.Count(name, ".") < 3 }
	names := slices.AppendSeq(slices.Clone(m.disabled), maps.Keys(m.plugins))
	return m, !slices.ContainsFunc(names, isShort)
}

// merge2 merges as containerd 2.x does (cmd/containerd/server/config/config.go:
// LoadConfigWithPlugins, mergeConfig): each file has its own version, tables are merged key by key,
// and all other values, including lists, are replaced.
func merge2(files []file) (merged, error) {
	m := newMerged()
	for _, f := range files {
		plugins, disabled := f.Plugins, f.Disabled
		if f.Version <= 1 {
			short, hasShort := plugins[devmapperName]
			if _, hasURI := plugins[devmapperURI]; hasShort && hasURI {
				return m, fmt.Errorf("%s has the sections [plugins.%s] and [plugins.%q], of which containerd uses either: "+
					"remove one of them: %w", f.path, devmapperName, devmapperURI, errdefs.ErrInvalidArgument)
			}
			if hasShort {
				plugins = maps.Clone(plugins)
				delete(plugins, devmapperName)
				plugins[devmapperURI] = short
			}
			disabled = slices.Clone(disabled)
			for i, name := range disabled {
				if name == devmapperName {
					disabled[i] = devmapperURI
				}
			}
		}
		m.add(f, disabled)
		mergeTables(m.plugins, plugins)
	}
	return m, nil
}

// mergeTables copies tables, because merged configurations must not share a table.
func mergeTables(to, from map[string]any) {
	for key, value := range from {
		table, isTable := value.(map[string]any)
		if !isTable {
			to[key] = value
			continue
		}
		into, wasTable := to[key].(map[string]any)
		if !wasTable {
			into = make(map[string]any, len(table))
			to[key] = into
		}
		mergeTables(into, table)
	}
}

// uses returns the keys "snapshotter" in all plugin sections, sorted. It searches all sections,
// because the CRI's keys have moved between versions.
func uses(plugins map[string]any) []Use {
	var found []Use
	var walk func(key string, value any)
	walk = func(key string, value any) {
		switch v := value.(type) {
		case map[string]any:
			for name, inner := range v {
				walk(key+"."+quoted(name), inner)
			}
		case []any:
			for i, inner := range v {
				walk(fmt.Sprintf("%s[%d]", key, i), inner)
			}
		case string:
			if strings.HasSuffix(strings.ToLower(key), ".snapshotter") && v != "" {
				found = append(found, Use{key, v})
			}
		}
	}
	walk("plugins", plugins)
	slices.SortFunc(found, func(a, b Use) int { return strings.Compare(a.Key, b.Key) })
	return found
}

// quoted returns a part of a dotted key in TOML's quotes, if it needs them.
func quoted(name string) string {
	bare := func(r rune) bool {
		return r == '-' || r == '_' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
	}
	if name != "" && !strings.ContainsFunc(name, func(r rune) bool { return !bare(r) }) {
		return name
	}
	return strconv.Quote(name)
}
