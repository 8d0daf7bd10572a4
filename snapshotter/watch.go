package snapshotter

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// watchStep is how often it is looked whether the pool fails writes.
	watchStep = time.Second
	// roomyAge is how old what the kernel said of the pool may be for that while the
	// pool has much room left: half the time that the kernel holds writes back for
	// want of space before it fails them (no_space_timeout of dm_thin_pool), unless
	// it was told otherwise. A pool that somebody else made may fail them at once.
	// What is left of the disk below the pool is always asked.
	roomyAge = 30 * time.Second
	// roomyBytes, and a tenth of the pool, is much room.
	roomyBytes = 1 << 30
	// diskFull is how much is left, in bytes, of a disk that is full: its file
	// system may need as much for itself to make a block.
	diskFull = 1 << 20
)

// watch looks at the pool until ctx ends: see lookForLoss.
func (s *Snapshotter) watch(ctx context.Context) {
	ticker := time.NewTicker(watchStep)
	defer ticker.Stop()
	age := watchStep / 2
	for {
		select {
		case <-ticker.C:
			age = s.lookForLoss(ctx, age)
		case <-ctx.Done():
			return
		}
	}
}

// lookForLoss takes note of the volumes that are being written to while the pool
// fails writes. What fails is the kernel's writing of its cache, of which nobody is
// told who does not ask for it, such as who unpacks a layer; and when it is over, no
// trace is left of it. What the kernel says of the pool may be of some age; it
// returns which age is good enough for the next look.
func (s *Snapshotter) lookForLoss(ctx context.Context, age time.Duration) (next time.Duration) {
	status, err := s.pool.RecentStatus(ctx, age)
	if err != nil {
		return watchStep / 2
	}
	if !failsWrites(status) {
		free := status.Data.Total - status.Data.Used
		if status.QueueIfNoSpace && free >= roomyBytes && free >= status.Data.Total/10 {
			return roomyAge
		}
		return watchStep / 2
	}
	active, err := s.pool.Active(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("the pool fails writes, and it is not known to which volumes")
		return watchStep / 2
	}
	for _, vol := range active {
		if !vol.ReadOnly && s.volumes.spoil(vol.ID) {
			log.G(ctx).WithField("device", vol.Path).WithField("pool", status.PoolStatus.String()).
				Warn("the pool fails writes: what is written to this volume now may be lost, and it is not committed any more")
		}
	}
	return watchStep / 2
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
