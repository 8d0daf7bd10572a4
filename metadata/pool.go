package metadata

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

var keyPool = []byte("pool")

// Pool returns the record stored by SetPool, or NotFound.
func (t *Tx) Pool() (PoolRecord, error) {
	v := t.buckets.meta.Get(keyPool)
	if v == nil {
		return PoolRecord{}, fmt.Errorf("pool of the metadata store: %w", errdefs.ErrNotFound)
	}
	return decodePool(v)
}

// Pool returns the record stored by SetPool, or NotFound.
func (s *Store) Pool(ctx context.Context) (PoolRecord, error) {
	var rec PoolRecord
	err := s.View(ctx, func(tx *Tx) (err error) {
		rec, err = tx.Pool()
		return err
	})
	return rec, err
}

// SetPool replaces the record of the pool. To change one field, take the others from Pool in the
// same transaction: Lease and Commit change the record too.
func (t *Tx) SetPool(p PoolRecord) error {
	if p.ID == "" {
		return fmt.Errorf("pool %q has no id: %w", p.Name, errdefs.ErrInvalidArgument)
	}
	return t.put(t.buckets.meta, keyPool, encodePool(p))
}
