package metadata

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

var keyPool = []byte("pool")

// Pool returns what SetPool stored, and NotFound before that.
func (t *Tx) Pool() (PoolRecord, error) {
	v := t.buckets.meta.Get(keyPool)
	if v == nil {
		return PoolRecord{}, fmt.Errorf("pool of the metadata store: %w", errdefs.ErrNotFound)
	}
	return decodePool(v)
}

// Pool returns what SetPool stored, and NotFound before that.
func (s *Store) Pool(ctx context.Context) (PoolRecord, error) {
	var rec PoolRecord
	err := s.View(ctx, func(tx *Tx) (err error) {
		rec, err = tx.Pool()
		return err
	})
	return rec, err
}

// SetPool stores which pool the store belongs to, replacing what it knew. To change one field, take
// the rest from Pool in the same transaction: Lease changes the record too.
func (t *Tx) SetPool(p PoolRecord) error {
	if p.ID == "" {
		return fmt.Errorf("pool %q has no id: %w", p.Name, errdefs.ErrInvalidArgument)
	}
	return t.put(t.buckets.meta, keyPool, encodePool(p))
}
