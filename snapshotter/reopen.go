package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// reopenPool loads the pool into the kernel again after an operation failed with gone, a pool.ErrNotActive.
// It returns nil if the operation can be retried.
func (s *Snapshotter) reopenPool(ctx context.Context, gone error) error {
	if s.config.Reopen == nil {
		return gone
	}
	// Other operations may wait for the same reopening.
	ctx = context.WithoutCancel(ctx)
	err := s.config.Reopen(ctx, func(ctx context.Context) error {
		if err := s.verifyPool(ctx); err != nil {
			return err
		}
		_, err := s.verifyIdentity(ctx)
		return err
	})
	if err != nil {
		// Only the text of the reason: the class is that of a missing pool.
		return fmt.Errorf("%w: it was removed from the kernel, and cannot be brought back: %s: %w", gone, err.Error(),
			errdefs.ErrUnavailable)
	}
	log.G(ctx).WithError(gone).Warn("another program had removed the pool from the kernel; it is back")
	return nil
}
