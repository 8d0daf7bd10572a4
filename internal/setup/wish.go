package setup

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// A Wish is the use that containerd should make of a proxy plugin.
type Wish struct {
	Switch
	// Default is true if the proxy should be the CRI's default snapshotter.
	Default bool
	// Runtimes are the CRI's runtimes that should use the proxy.
	Runtimes []string
}

const (
	transferURI = "io.containerd.transfer.v1.local"
	// The CRI's plugins: one up to containerd 1.7, two since 2.0.
	criURI     = "io.containerd.grpc.v1.cri"
	criName    = "cri"
	imagesURI  = "io.containerd.cri.v1.images"
	runtimeURI = "io.containerd.cri.v1.runtime"

	// walking is containerd's own differ, which can unpack for all snapshotters.
	walking = "walking"
)

// A part is one setting that a wish needs.
type part struct {
	key    []string // from the top, as in `config dump`
	value  any
	reason string // a comment for the file
}

// parts returns the settings that a wish needs and containerd does not have yet.
//
// Errors are errdefs.ErrFailedPrecondition if another proxy plugin has the name or the address,
// ErrNotFound for a runtime that is not configured, and ErrNotImplemented for features that a
// release lacks.
func (w Wish) parts(has Dump, r Release) ([]part, error) {
	var missing []part
	want := func(reason string, value any, key ...string) {
		if !satisfies(at(has.all, key...), value) {
			missing = append(missing, part{key, value, reason})
		}
	}
	if err := w.fits(has.Proxies); err != nil {
		return nil, err
	}
	if _, exists := has.Proxies[w.Proxy]; !exists {
		want("", w.proxy(r), "proxy_plugins", w.Proxy)
	}
	if list, listed := w.unpack(has, r); !listed {
		want("The snapshotters for which pulled images can be unpacked. The list replaces the previous one.", list,
			"plugins", transferURI, "unpack_config")
	}
	images, runtimes := []string{"plugins", imagesURI}, []string{"plugins", runtimeURI, "containerd", "runtimes"}
	if !r.AtLeast(2, 0) {
		images, runtimes = []string{"plugins", criURI, "containerd"}, []string{"plugins", criURI, "containerd", "runtimes"}
	}
	if w.Default {
		isCRI := func(name string) bool { return name == criURI || name == criName || name == imagesURI }
		if slices.ContainsFunc(has.Disabled, isCRI) {
			return nil, fmt.Errorf("containerd's CRI plugin is in disabled_plugins, so it has no default snapshotter: leave "+
				"out --default, or take it out of the list: %w", errdefs.ErrFailedPrecondition)
		}
		want("", w.Proxy, append(images, "snapshotter")...)
	}
	if len(w.Runtimes) > 0 && !r.AtLeast(1, 7) {
		return nil, fmt.Errorf("containerd %s has one snapshotter for all runtimes of its CRI plugin: use --default, or "+
			"containerd 1.7 or newer: %w", r, errdefs.ErrNotImplemented)
	}
	for _, name := range w.Runtimes {
		known, _ := at(has.all, runtimes...).(map[string]any)
		if _, exists := known[name]; !exists {
			return nil, fmt.Errorf("containerd's CRI plugin has no runtime %q, only %q: configure it first: %w", name,
				slices.Sorted(maps.Keys(known)), errdefs.ErrNotFound)
		}
		want("", w.Proxy, slices.Concat(runtimes, []string{name, "snapshotter"})...)
		if r.AtLeast(2, 0) && !r.AtLeast(2, 3) {
			want("", map[string]any{"platform": w.Platform, "snapshotter": w.Proxy},
				slices.Concat(images, []string{"runtime_platforms", name})...)
		}
	}
	return missing, nil
}

// fits fails if another proxy plugin has the name or the address.
func (w Wish) fits(proxies map[string]Proxy) error {
	if other := proxyAt(proxies, w.Address); other != "" && other != w.Proxy {
		return fmt.Errorf("the proxy plugin %q has the address %s already: remove its section [proxy_plugins.%s]: %w",
			other, w.Address, quoted(other), errdefs.ErrFailedPrecondition)
	}
	present, exists := proxies[w.Proxy]
	if exists && present != (Proxy{snapshotType, w.Address}) {
		return fmt.Errorf("there is a proxy plugin %q already, of type %q at %q: correct its section to type %q and address "+
			"%q, or remove it: %w", w.Proxy, present.Type, present.Address, snapshotType, w.Address,
			errdefs.ErrFailedPrecondition)
	}
	return nil
}

// proxy returns the proxy's section, with the keys that the release supports.
func (w Wish) proxy(r Release) map[string]any {
	section := map[string]any{"type": snapshotType, "address": w.Address}
	if r.AtLeast(1, 7) {
		section["exports"] = map[string]any{"root": w.Root}
	}
	if r.AtLeast(2, 0) {
		section["platform"] = w.Platform
		section["capabilities"] = []any{"remap-ids"}
	}
	return section
}

// unpack returns containerd's unpack_config with the proxy added at its end. listed is true, and
// the list nil, if the proxy is in it already, or if containerd has no such list, as in 1.6.
func (w Wish) unpack(has Dump, r Release) (list []any, listed bool) {
	transfer, exists := at(has.all, "plugins", transferURI).(map[string]any)
	if !exists {
		return nil, true
	}
	list, hasList := transfer["unpack_config"].([]any)
	if !hasList {
		list = builtinUnpack(w.Platform, r)
	}
	for _, item := range list {
		if table, _ := item.(map[string]any); table["snapshotter"] == w.Proxy && table["platform"] == w.Platform {
			return nil, true
		}
	}
	ours := map[string]any{"platform": w.Platform, "snapshotter": w.Proxy, "differ": walking}
	return append(withoutDefaults(list), ours), false
}

// withoutDefaults copies a list of tables without a dump's empty values.
func withoutDefaults(list []any) []any {
	var short []any
	for _, item := range list {
		table, isTable := item.(map[string]any)
		if !isTable {
			short = append(short, item)
			continue
		}
		kept := maps.Clone(table)
		maps.DeleteFunc(kept, func(_ string, value any) bool {
			items, isList := value.([]any)
			return value == "" || value == false || isList && len(items) == 0
		})
		short = append(short, kept)
	}
	return short
}

// builtinUnpack returns the default list of containerd 2.x, which a dump does not show
// (plugins/transfer: defaultUnpackConfig).
func builtinUnpack(platform string, r Release) []any {
	list := []any{map[string]any{"platform": platform, "snapshotter": "overlayfs", "differ": walking}}
	if r.AtLeast(2, 3) {
		os, arch, _ := strings.Cut(platform, "/")
		list = append(list, map[string]any{
			"platform": os + "(+erofs)/" + arch, "snapshotter": "erofs", "differ": "erofs", "optional": true,
		})
	}
	return list
}

// at returns the value of a key in nested tables, or nil.
func at(value any, key ...string) any {
	for _, part := range key {
		table, isTable := value.(map[string]any)
		if !isTable {
			return nil
		}
		value = table[part]
	}
	return value
}

// satisfies reports whether a value has all wanted values. Tables may have more keys, which are
// containerd's defaults.
func satisfies(has, wanted any) bool {
	switch w := wanted.(type) {
	case map[string]any:
		table, isTable := has.(map[string]any)
		for key, value := range w {
			if !isTable || !satisfies(table[key], value) {
				return false
			}
		}
		return isTable
	case []any:
		list, isList := has.([]any)
		if !isList || len(list) != len(w) {
			return false
		}
		for i := range w {
			if !satisfies(list[i], w[i]) {
				return false
			}
		}
		return true
	}
	return has == wanted
}
