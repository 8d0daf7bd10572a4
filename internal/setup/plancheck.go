package setup

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// checkPlan fails if the effective configuration would not change as planned: if a part is missing, or
// anything else has changed.
func checkPlan(before, after Dump, parts []part) error {
	for _, p := range parts {
		if has := at(after.all, p.key...); !satisfies(has, p.value) {
			return fmt.Errorf("not changed: the import would set %s, but a file that is imported later sets it again: "+
				"change it there, or configure containerd by hand: %w", dotted(p.key), errdefs.ErrFailedPrecondition)
		}
	}
	wrong := differingKeys(nil, before.all, after.all, func(key []string) bool {
		return len(key) == 1 && (key[0] == importsKey || key[0] == "version") ||
			slices.ContainsFunc(parts, func(p part) bool { return slices.Equal(p.key, key) })
	})
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("not changed, because the change would affect other settings: %s: configure containerd by hand, as "+
		"docs/getting-started.md says: %w", strings.Join(wrong, ", "), errdefs.ErrFailedPrecondition)
}

// differingKeys returns the keys whose values differ, except those that may change.
func differingKeys(key []string, before, after any, may func([]string) bool) []string {
	if may(key) {
		return nil
	}
	old, wasTable := before.(map[string]any)
	table, isTable := after.(map[string]any)
	empty := len(old)+len(table) == 0
	switch {
	case (before == nil || wasTable) && (after == nil || isTable) && (wasTable || isTable) && !empty:
	case reflect.DeepEqual(before, after) || empty && before != nil && after != nil:
		return nil
	default:
		return []string{dotted(key)} // without the value, which may be a registry's password
	}
	var names []string
	for name := range old {
		names = append(names, name)
	}
	for name := range table {
		if _, both := old[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var found []string
	for _, name := range names {
		inner := append(slices.Clone(key), name)
		found = append(found, differingKeys(inner, old[name], table[name], may)...)
	}
	return found
}
