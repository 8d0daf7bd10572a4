package metadb

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// Verify verifies a database after Rename. before is the result of a Read before it. The same places
// must have the new name (to), the snapshots that are left out must have the old name, and nothing
// else may have changed. Otherwise Verify fails with DataLoss, and the file must not be used. It also
// fails like Read.
func Verify(ctx context.Context, path string, before Names, to string, leave LeaveOut) error {
	if err := checkNames(before.Snapshotter, to); err != nil {
		return err
	}
	var moved, left Names
	err := boltfile.View(path, func(tx *bolt.Tx) (err error) {
		if moved, err = read(ctx, tx, to, before.Snapshotter); err != nil {
			return err
		}
		left, err = read(ctx, tx, before.Snapshotter, to)
		return err
	})
	if err != nil {
		return explain("read", path, err)
	}
	wantMoved, wantLeft := before.split(to, leave)
	text := difference(wantLeft, left, true)
	if text == "" {
		text = difference(wantMoved, moved, false)
	}
	if text == "" && before.Digest != moved.Digest {
		text = "something has changed that does not name the snapshotter"
	}
	if text == "" {
		return nil
	}
	return fmt.Errorf("verify %s: %s: do not use this file: %w", path, text, errdefs.ErrDataLoss)
}

// difference returns the first difference between the expected and the found Names, or "". Unless
// exactly is set, it accepts entries that Rename may have merged.
func difference(want, is Names, exactly bool) string {
	if want.Version != is.Version {
		return fmt.Sprintf("the version was %d, and is %d now", want.Version, is.Version)
	}
	for _, ns := range is.Namespaces {
		known := slices.ContainsFunc(want.Namespaces, func(w Namespace) bool { return w.Name == ns.Name })
		if !known && (exactly || !(Names{Namespaces: []Namespace{ns}}).Vacant()) {
			return fmt.Sprintf("namespace %q names the snapshotter %q", ns.Name, is.Snapshotter)
		}
	}
	for _, w := range want.Namespaces {
		i := slices.IndexFunc(is.Namespaces, func(ns Namespace) bool { return w.Name == ns.Name })
		if i < 0 {
			return fmt.Sprintf("namespace %q does not name the snapshotter %q", w.Name, is.Snapshotter)
		}
		if text := w.difference(is.Namespaces[i], exactly); text != "" {
			return fmt.Sprintf("snapshotter %q in namespace %q: %s", is.Snapshotter, w.Name, text)
		}
	}
	return ""
}

func (ns Namespace) difference(is Namespace, exactly bool) string {
	switch {
	case ns.Bucket != is.Bucket && (exactly || ns.Bucket):
		return fmt.Sprintf("a bucket of snapshots should exist: %t, and does: %t", ns.Bucket, is.Bucket)
	case ns.Sequence != is.Sequence && (exactly || ns.Sequence > is.Sequence):
		return fmt.Sprintf("the sequence was %d, and is %d now", ns.Sequence, is.Sequence)
	case ns.Default != is.Default && (exactly || ns.Default):
		return fmt.Sprintf("it should be the default: %t, and is: %t", ns.Default, is.Default)
	}
	// Labels of snapshots are compared below if they name the snapshotter, and else by the digest.
	snapshot := func(a, b Snapshot) bool {
		return a.Key == b.Key && a.Backend == b.Backend && a.Parent == b.Parent && slices.Equal(a.Children, b.Children) &&
			a.Created.Equal(b.Created) && a.Updated.Equal(b.Updated)
	}
	lease := func(a, b Lease) bool { return a.ID == b.ID && slices.Equal(a.Snapshots, b.Snapshots) }
	for _, text := range []string{
		compare("snapshot", ns.Snapshots, is.Snapshots, snapshot, func(s Snapshot) string { return s.Key }),
		compare("container", ns.Containers, is.Containers, same, func(c Container) string { return c.ID }),
		compare("lease", used(ns.Leases), used(is.Leases), lease, func(l Lease) string { return l.ID }),
		compare("label", ns.Labels, is.Labels, same, func(l Label) string { return l.Object + " " + l.Key }),
	} {
		if text != "" {
			return text
		}
	}
	return ""
}

func used(leases []Lease) []Lease {
	return slices.DeleteFunc(slices.Clone(leases), func(l Lease) bool { return len(l.Snapshots) == 0 })
}

func same[T comparable](a, b T) bool { return a == b }

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
