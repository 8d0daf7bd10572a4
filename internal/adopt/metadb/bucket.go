package metadb

import (
	"context"

	bolt "go.etcd.io/bbolt"
)

// within returns the bucket of a path in a bucket, or nil. b may be nil.
func within(b *bolt.Bucket, path ...string) *bolt.Bucket {
	for _, name := range path {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(name))
	}
	return b
}

// remove removes an entry of a bucket.
func remove(b *bolt.Bucket, key []byte) error {
	if b.Bucket(key) != nil {
		return b.DeleteBucket(key)
	}
	return b.Delete(key)
}

// copyEntry copies an entry of a bucket to another bucket.
func copyEntry(ctx context.Context, to, from *bolt.Bucket, key []byte) error {
	b := from.Bucket(key)
	if b == nil {
		// bbolt takes a nil value for a bucket as long as the transaction lasts.
		return to.Put(key, append([]byte{}, from.Get(key)...))
	}
	target, err := to.CreateBucket(key)
	if err != nil {
		return err
	}
	return copyBucket(ctx, target, b)
}

// copyBucket copies the entries and the sequences of a bucket, and of those within it.
func copyBucket(ctx context.Context, to, from *bolt.Bucket) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// A bucket counts its keys from 0 after CreateBucket.
	if err := to.SetSequence(from.Sequence()); err != nil {
		return err
	}
	return from.ForEach(func(key, _ []byte) error { return copyEntry(ctx, to, from, key) })
}
