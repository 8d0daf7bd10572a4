package metadb

import (
	"fmt"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// keep adds a label to an object, which protects a snapshot from the collector.
func keep(object *bolt.Bucket, label, snapshot string) error {
	labels, err := object.CreateBucketIfNotExists([]byte(keyLabels))
	if err != nil {
		return err
	}
	if labels.Get([]byte(label)) != nil {
		return fmt.Errorf("it has a label %q already: remove it: %w", label, errdefs.ErrAlreadyExists)
	}
	return labels.Put([]byte(label), []byte(snapshot))
}

// removeKeep undoes keep, and returns the snapshot, or "" without the label.
func removeKeep(object *bolt.Bucket, label string) (snapshot string, err error) {
	labels := within(object, keyLabels)
	if labels == nil {
		return "", nil
	}
	value := labels.Get([]byte(label))
	if value == nil {
		return "", nil
	}
	snapshot = string(value)
	if err := labels.Delete([]byte(label)); err != nil || len(keys(labels)) > 0 {
		return snapshot, err
	}
	return snapshot, object.DeleteBucket([]byte(keyLabels))
}
