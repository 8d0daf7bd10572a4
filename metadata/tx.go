package metadata

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// A Tx is a transaction that View and Update pass to their function. Its methods see its own
// changes.
type Tx struct {
	buckets *buckets
	writes  int // changes made or attempted
}

// buckets are those of one bbolt transaction, which several Txs use in turn.
type buckets struct {
	meta, snapshots, children, devices, leases, trash, bases *bolt.Bucket
}

var bucketRoot = []byte("v1")

type namedBucket struct {
	name   string
	bucket **bolt.Bucket
}

func (b *buckets) all() [7]namedBucket {
	return [...]namedBucket{
		{"meta", &b.meta}, {"snapshots", &b.snapshots}, {"children", &b.children}, {"devices", &b.devices},
		{"leases", &b.leases}, {"trash", &b.trash}, {"bases", &b.bases},
	}
}

func openBuckets(tx *bolt.Tx) (*buckets, error) {
	root := tx.Bucket(bucketRoot)
	if root == nil {
		return nil, fmt.Errorf("bucket %q is missing: %w", bucketRoot, ErrCorrupt)
	}
	var b buckets
	for _, n := range b.all() {
		if *n.bucket = root.Bucket([]byte(n.name)); *n.bucket == nil {
			return nil, fmt.Errorf("bucket %q is missing: %w", n.name, ErrCorrupt)
		}
	}
	// Ids and most keys rise (containerd numbers its keys). Split in the middle, the left pages
	// would stay half empty.
	for _, rising := range []*bolt.Bucket{b.snapshots, b.children, b.devices, b.trash} {
		rising.FillPercent = 0.9
	}
	return &b, nil
}

// put and delete count before they write, so that a transaction in which one failed does not count
// as unchanged.
func (t *Tx) put(b *bolt.Bucket, k, v []byte) error {
	t.writes++
	if err := b.Put(k, v); err != nil {
		return fmt.Errorf("write to metadata store: %w", err)
	}
	return nil
}

func (t *Tx) delete(b *bolt.Bucket, k []byte) error {
	t.writes++
	if err := b.Delete(k); err != nil {
		return fmt.Errorf("delete from metadata store: %w", err)
	}
	return nil
}
