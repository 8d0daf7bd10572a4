package metadb

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A LeaveOut has the snapshots that keep the snapshotter's old name, as namespace → Key. Some may
// no longer exist. All descendants of such a snapshot must be left out too.
type LeaveOut map[string]map[string]bool

// requireClosed fails if a snapshot in the bucket of a namespace is not left out although its parent is.
func (l LeaveOut) requireClosed(namespace string, b *bolt.Bucket) error {
	out := l[namespace]
	if !slices.Contains(slices.Collect(maps.Values(out)), true) {
		return nil
	}
	return b.ForEach(func(key, _ []byte) error {
		record := b.Bucket(key)
		if record == nil || out[string(key)] {
			return nil
		}
		parent := string(record.Get([]byte(keyParent)))
		if !out[parent] {
			return nil
		}
		return fmt.Errorf("snapshot %q in namespace %q has the parent %q, which is left out: leave it out, too: %w", key,
			namespace, parent, errdefs.ErrInvalidArgument)
	})
}
