package snapshotter

import (
	"context"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// now returns the time in UTC, as the store keeps it: containerd compares times to the nanosecond.
func now() time.Time { return time.Now().UTC() }

func (s *Snapshotter) get(ctx context.Context, key string) (metadata.Snapshot, error) {
	var rec metadata.Snapshot
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	})
	return rec, err
}

// lockVolumeOf locks the volume of the record that read returns, and calls read again under the lock. The
// key may have been committed or removed during the wait, and its volume must not be activated for writing
// then.
func (s *Snapshotter) lockVolumeOf(
	ctx context.Context, read func() (metadata.Snapshot, error),
) (unlock func(), err error) {
	rec, err := read()
	if err != nil {
		return nil, err
	}
	for {
		locked := rec.VolumeID
		unlock, err := s.volumes.locks.lock(ctx, thin.ID(locked))
		if err != nil {
			return nil, err
		}
		if rec, err = read(); err != nil {
			unlock()
			return nil, err
		}
		if rec.VolumeID == locked {
			return unlock, nil
		}
		unlock() // the key was removed and created again
	}
}
