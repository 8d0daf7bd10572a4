package metadb

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Verify reads a database after Rename, and fails with DataLoss unless the snapshotter has the name
// to wherever it had the name in before, which Read returned, and nothing else has changed. Such a
// file must not be used. Otherwise it fails as Read does.
func Verify(ctx context.Context, path string, before Names, to string, leave LeaveOut) error {
	if len(leave) > 0 {
		return fmt.Errorf("leave snapshots out: %w", errdefs.ErrNotImplemented)
	}
	after, err := Read(ctx, path, to)
	if err != nil {
		return err
	}
	left, err := Read(ctx, path, before.Snapshotter)
	if err != nil {
		return err
	}
	text := difference(before, after)
	if !left.Empty() {
		text = fmt.Sprintf("namespace %q still names the snapshotter %q", left.Namespaces[0].Name, before.Snapshotter)
	}
	if text == "" {
		return nil
	}
	return fmt.Errorf("verify %s: %s: do not use this file: %w", path, text, errdefs.ErrDataLoss)
}

// difference returns the first difference between the names of two databases, or "".
func difference(before, after Names) string {
	if b, a := len(before.Namespaces), len(after.Namespaces); b != a {
		return fmt.Sprintf("%d namespaces named the snapshotter, and %d do now", b, a)
	}
	if before.Version != after.Version {
		return fmt.Sprintf("the version was %d, and is %d now", before.Version, after.Version)
	}
	for i := range before.Namespaces {
		b, a := &before.Namespaces[i], &after.Namespaces[i]
		if b.Name != a.Name {
			return fmt.Sprintf("namespace %q is %q now", b.Name, a.Name)
		}
		if text := b.difference(a, before.Snapshotter, after.Snapshotter); text != "" {
			return fmt.Sprintf("in namespace %q: %s", b.Name, text)
		}
	}
	if before.Digest != after.Digest {
		return "something has changed that does not name the snapshotter"
	}
	return ""
}

func (ns *Namespace) difference(after *Namespace, from, to string) string {
	switch {
	case ns.Bucket != after.Bucket:
		return fmt.Sprintf("a bucket of snapshots existed: %t, and does now: %t", ns.Bucket, after.Bucket)
	case ns.Sequence != after.Sequence:
		return fmt.Sprintf("the sequence was %d, and is %d now", ns.Sequence, after.Sequence)
	case ns.Default != after.Default:
		return fmt.Sprintf("it was the default: %t, and is now: %t", ns.Default, after.Default)
	}
	// The labels of the snapshots are compared below if they name the snapshotter, and by the digest.
	snapshot := func(a, b Snapshot) bool {
		return a.Key == b.Key && a.Backend == b.Backend && a.Parent == b.Parent && slices.Equal(a.Children, b.Children) &&
			len(a.Labels) == len(b.Labels) && a.Created.Equal(b.Created) && a.Updated.Equal(b.Updated)
	}
	lease := func(a, b Lease) bool { return a.ID == b.ID && slices.Equal(a.Snapshots, b.Snapshots) }
	for _, text := range []string{
		compare("snapshot", ns.Snapshots, after.Snapshots, snapshot, func(s Snapshot) string { return s.Key }),
		compare("container", ns.Containers, after.Containers, func(a, b Container) bool { return a == b },
			func(c Container) string { return c.ID }),
		compare("lease", ns.Leases, after.Leases, lease, func(l Lease) string { return l.ID }),
	} {
		if text != "" {
			return text
		}
	}
	return ns.labelDifference(after, from, to)
}

// labelDifference compares the labels without regard to their order, which the name changes.
func (ns *Namespace) labelDifference(after *Namespace, from, to string) string {
	if b, a := len(ns.Labels), len(after.Labels); b != a {
		return fmt.Sprintf("%d labels named the snapshotter, and %d do now", b, a)
	}
	count := make(map[Label]int, len(ns.Labels))
	for _, l := range ns.Labels {
		before, _, rest, _ := splitLabel([]byte(l.Key))
		l.Key = string(before) + to + string(rest)
		if key, ok := strings.CutPrefix(l.Object, keySnapshots+"/"+from+"/"); ok {
			l.Object = keySnapshots + "/" + to + "/" + key
		}
		count[l]++
	}
	for _, l := range after.Labels {
		if count[l]--; count[l] < 0 {
			return fmt.Sprintf("label %q of %s was not there", l.Key, l.Object)
		}
	}
	return ""
}

// compare returns the first difference of two lists, or "".
func compare[T any](kind string, before, after []T, equal func(a, b T) bool, id func(T) string) string {
	if len(before) != len(after) {
		return fmt.Sprintf("the number of %ss was %d, and is %d now", kind, len(before), len(after))
	}
	for i := range before {
		if !equal(before[i], after[i]) {
			return fmt.Sprintf("%s %q differs", kind, id(before[i]))
		}
	}
	return ""
}
