package snapshotter

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// watchStep is how often the pool is looked at.
	watchStep = time.Second
	// diskFull is how much is left, in bytes, of a disk that is full: its file
	// system may need as much for itself to make a block.
	diskFull = 1 << 20
)

// watch looks at the pool until ctx ends: see lookForLoss.
func (s *Snapshotter) watch(ctx context.Context) {
	ticker := time.NewTicker(watchStep)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.lookForLoss(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// lookForLoss takes note of the volumes that are being written to while the pool
// fails writes. What fails is the kernel's writing of its cache, of which nobody is
// told who does not ask for it, such as who unpacks a layer; and when it is over, no
// trace is left of it.
func (s *Snapshotter) lookForLoss(ctx context.Context) {
	status, err := s.pool.RecentStatus(ctx, watchStep/2)
	if err != nil || !failsWrites(status) {
		return
	}
	active, err := s.pool.Active(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("the pool fails writes, and it is not known to which volumes")
		return
	}
	for _, vol := range active {
		if !vol.ReadOnly && s.volumes.spoil(vol.ID) {
			log.G(ctx).WithField("device", vol.Path).WithField("pool", status.PoolStatus.String()).
				Warn("the pool fails writes: what is written to this volume now may be lost, and it is not committed any more")
		}
	}
}

// failsWrites tells whether a write to a place that was not written before fails.
func failsWrites(status pool.Status) bool {
	switch status.Mode {
	case thin.ModeReadWrite:
		return status.Data.Available < min(diskFull, status.Data.Total-status.Data.Used)
	case thin.ModeOutOfDataSpace:
		return !status.QueueIfNoSpace
	}
	return true
}
