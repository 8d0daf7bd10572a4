package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// reopenPool brings the pool back into the kernel after an operation has failed with gone,
// pool.ErrNotActive. It returns nil if the operation can be tried again.
func (s *Snapshotter) reopenPool(ctx context.Context, gone error) error {
	if s.config.Reopen == nil {
		return gone
	}
	// Others wait for it, too.
	ctx = context.WithoutCancel(ctx)
	err := s.config.Reopen(ctx, func(ctx context.Context) error {
		if err := s.verifyPool(ctx); err != nil {
			return err
		}
		_, err := s.verifyIdentity(ctx)
		return err
	})
	if err != nil {
		// Only the text of the reason: the class is that of a pool that is not there.
		return fmt.Errorf("%w: it was removed from the kernel, and cannot be brought back: %s: %w", gone, err.Error(),
			errdefs.ErrUnavailable)
	}
	log.G(ctx).WithError(gone).Warn("another program had removed the pool from the kernel; it is back")
	return nil
}
