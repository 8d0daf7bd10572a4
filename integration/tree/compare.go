package tree

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Compare lists the differences between a and b, sorted by path; none if all fields of [Entry] are equal.
func Compare(a, b Tree) []string {
	paths := slices.Collect(maps.Keys(a))
	for path := range b {
		if _, both := a[path]; !both {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	var differences []string
	for _, path := range paths {
		ea, inA := a[path]
		eb, inB := b[path]
		switch {
		case !inB:
			differences = append(differences, fmt.Sprintf("%q is missing", path))
		case !inA:
			differences = append(differences, fmt.Sprintf("%q is extra", path))
		default:
			for _, d := range compareEntries(ea, eb) {
				differences = append(differences, fmt.Sprintf("%q: %s", path, d))
			}
		}
	}
	return differences
}

func compareEntries(a, b Entry) []string {
	var differences []string
	differ := func(what string, a, b any) {
		if a != b {
			differences = append(differences, fmt.Sprintf("%s %v, not %v", what, b, a))
		}
	}
	differ("mode", fmt.Sprintf("%#o", a.Mode), fmt.Sprintf("%#o", b.Mode))
	differ("uid", a.UID, b.UID)
	differ("gid", a.GID, b.GID)
	differ("size", a.Size, b.Size)
	differ("modified", a.ModTime.Format(time.RFC3339Nano), b.ModTime.Format(time.RFC3339Nano))
	differ("device", fmt.Sprintf("%#x", a.Device), fmt.Sprintf("%#x", b.Device))
	differ("target", a.Target, b.Target)
	differ("content", a.Digest, b.Digest)
	differ("other names", strings.Join(a.Links, ", "), strings.Join(b.Links, ", "))
	differ("sparse", a.Sparse, b.Sparse)
	names := maps.Clone(a.Xattrs)
	if names == nil {
		names = make(map[string]string)
	}
	maps.Copy(names, b.Xattrs)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		va, inA := a.Xattrs[name]
		vb, inB := b.Xattrs[name]
		if inA != inB || va != vb {
			differences = append(differences, fmt.Sprintf("attribute %s %s, not %s", name, show(vb, inB), show(va, inA)))
		}
	}
	return differences
}

func show(value string, there bool) string {
	if !there {
		return "absent"
	}
	return fmt.Sprintf("%q", value)
}
