package snapshotter

import (
	"context"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Remove removes a snapshot without children. Its key is free at once. Its volume is deleted in the
// background; Cleanup waits for that.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	_, err := runBounded(ctx, s, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.remove(ctx, key) })
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, Classify(err))
	}
	return nil
}

func (s *Snapshotter) remove(ctx context.Context, key string) error {
	var rec metadata.Snapshot
	err := s.store.Update(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Remove(key, now())
		return err
	})
	if err != nil {
		return err
	}
	// gofail: var afterRemoveRecord struct{}
	s.noteVolume(ctx, thin.ID(rec.VolumeID))
	s.reaper.addLater(thin.ID(rec.VolumeID))
	return nil
}

// Cleanup deletes the volumes of removed snapshots. A volume in use is deleted later, when it is no longer
// in use. Deletions that the kernel does not finish in time continue in the background.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, kernelWait, errStuck)
	defer cancel()
	if err := s.reaper.drain(ctx); err != nil {
		return fmt.Errorf("clean up: %w", Classify(err))
	}
	return nil
}
