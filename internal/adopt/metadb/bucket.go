package metadb

import (
	"context"

	bolt "go.etcd.io/bbolt"
)

// within returns the bucket at a path in b, or nil. b may be nil.
func within(b *bolt.Bucket, path ...string) *bolt.Bucket {
	for _, name := range path {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(name))
	}
	return b
}

func remove(b *bolt.Bucket, key []byte) error {
	if b.Bucket(key) != nil {
		return b.DeleteBucket(key)
	}
	return b.Delete(key)
}

func copyEntry(ctx context.Context, to, from *bolt.Bucket, key []byte) error {
	b := from.Bucket(key)
	if b == nil {
		// bbolt treats an entry with a nil value as a bucket until the transaction ends.
		return to.Put(key, append([]byte{}, from.Get(key)...))
	}
	target, err := to.CreateBucket(key)
	if err != nil {
		return err
	}
	return copyBucket(ctx, target, b)
}

// copyBucket copies the entries and the sequences of a bucket and its nested buckets.
func copyBucket(ctx context.Context, to, from *bolt.Bucket) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// CreateBucket resets the sequence.
	if err := to.SetSequence(from.Sequence()); err != nil {
		return err
	}
	return from.ForEach(func(key, _ []byte) error { return copyEntry(ctx, to, from, key) })
}
