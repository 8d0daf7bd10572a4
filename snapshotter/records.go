package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// get reads one record.
func (s *Snapshotter) get(ctx context.Context, key string) (metadata.Snapshot, error) {
	var rec metadata.Snapshot
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	})
	return rec, err
}

// stillThere returns errdefs.ErrNotFound if the snapshot of which the volume was read
// is no longer there. Another one with the same key is another snapshot.
func stillThere(tx *metadata.Tx, key string, id thin.ID) error {
	rec, err := tx.Get(key)
	if err == nil && thin.ID(rec.Device) != id {
		err = fmt.Errorf("snapshot %q was removed, and made again: %w", key, errdefs.ErrNotFound)
	}
	return err
}

// lockVolumeOf locks the volume of the record that read returns, and calls read
// again under the lock: while it was waited for, the key may have been committed
// or removed, and its volume must not be activated for writing then.
func (s *Snapshotter) lockVolumeOf(ctx context.Context, read func() (metadata.Snapshot, error)) (unlock func(), err error) {
	rec, err := read()
	if err != nil {
		return nil, err
	}
	for {
		locked := rec.Device
		unlock, err := s.volumes.locks.lock(ctx, thin.ID(locked))
		if err != nil {
			return nil, err
		}
		if rec, err = read(); err != nil {
			unlock()
			return nil, err
		}
		if rec.Device == locked {
			return unlock, nil
		}
		// The key was removed, and made again.
		unlock()
	}
}
