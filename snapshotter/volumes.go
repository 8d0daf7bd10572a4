package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// busyWait bounds how long an operation waits for somebody else, like a
	// scanner of new devices, to close a device.
	busyWait = 2 * time.Second
	busyStep = 20 * time.Millisecond
)

// volumes activates and deactivates volumes. Work on one volume is done under
// its lock; nothing is done under a lock of all of them.
type volumes struct {
	pool  Pool
	locks keyLock[thin.ID]

	mu sync.Mutex
	// pins count the operations under way that need a volume to stay active
	// although no record says so yet.
	pins map[thin.ID]int
	// mapped remembers what inactive volumes have mapped: while inactive that
	// cannot change.
	mapped map[thin.ID]uint64
	// news are the active snapshots' volumes that this process has made.
	news map[thin.ID]struct{}
	// spoilt are those of which something that was written may be lost.
	spoilt map[thin.ID]struct{}
}

func newVolumes(p Pool) *volumes {
	return &volumes{
		pool:   p,
		pins:   make(map[thin.ID]int),
		mapped: make(map[thin.ID]uint64),
		news:   make(map[thin.ID]struct{}),
		spoilt: make(map[thin.ID]struct{}),
	}
}

// pin keeps a volume from being deactivated in the background until the
// returned function is called.
func (v *volumes) pin(id thin.ID) (unpin func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pins[id]++
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.pins[id]--; v.pins[id] == 0 {
			delete(v.pins, id)
		}
	}
}

func (v *volumes) pinned(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.pins[id] > 0
}

// use returns the volume, activated if it was not, writable or not as asked.
func (v *volumes) use(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (pool.Volume, error) {
	unlock, err := v.locks.lock(ctx, id)
	if err != nil {
		return pool.Volume{}, err
	}
	defer unlock()
	return v.useLocked(ctx, id, bytes, readOnly)
}

// useLocked is use for a caller that holds the volume's lock.
func (v *volumes) useLocked(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (pool.Volume, error) {
	vol, err := v.pool.Lookup(ctx, id)
	if err == nil && vol.Suspended {
		// By a Commit of a process that has ended since; ours has the lock.
		if err := v.pool.Resume(id); err != nil {
			return pool.Volume{}, err
		}
		vol.Suspended = false
	}
	switch {
	case err == nil && vol.ReadOnly == readOnly:
		return vol, nil
	case err == nil:
		// A layer is still active as it was written: it comes back read-only.
		if err := v.deactivateSoon(ctx, id); err != nil {
			return pool.Volume{}, err
		}
		// gofail: var afterDeactivateToUse struct{}
	case !errors.Is(err, devmapper.ErrNotFound):
		return pool.Volume{}, err
	}
	v.mu.Lock()
	delete(v.mapped, id)
	v.mu.Unlock()
	return v.pool.Activate(ctx, id, bytes, readOnly)
}

// deactivateSoon deactivates a volume for which somebody waits, and so waits
// for a short-lived opener to go.
func (v *volumes) deactivateSoon(ctx context.Context, id thin.ID) error {
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	for {
		err := v.pool.Deactivate(ctx, id)
		if !errors.Is(err, devmapper.ErrBusy) {
			return err
		}
		select {
		case <-time.After(busyStep):
		case <-ctx.Done():
			return fmt.Errorf("deactivate volume %d, which is in use (is it still mounted?): %w: %w", id, err, errdefs.ErrUnavailable)
		}
	}
}

// mappedBytes returns what a volume has mapped. One that is not active is
// activated for the time of the question, once.
func (v *volumes) mappedBytes(ctx context.Context, id thin.ID, bytes uint64) (uint64, error) {
	v.mu.Lock()
	mapped, known := v.mapped[id]
	v.mu.Unlock()
	if known {
		return mapped, nil
	}
	unlock, err := v.locks.lock(ctx, id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	mapped, err = v.pool.Mapped(ctx, id)
	if !errors.Is(err, devmapper.ErrNotFound) {
		return mapped, err
	}
	if _, err := v.pool.Activate(ctx, id, bytes, true); err != nil {
		return 0, err
	}
	// gofail: var afterActivateToMeasure struct{}
	mapped, err = v.pool.Mapped(ctx, id)
	// Whoever asks may have gone meanwhile.
	if err := errors.Join(err, v.deactivateSoon(context.WithoutCancel(ctx), id)); err != nil {
		return 0, err
	}
	// gofail: var afterMeasure struct{}
	v.mu.Lock()
	v.mapped[id] = mapped
	v.mu.Unlock()
	return mapped, nil
}

// made takes note of a volume that was just made.
func (v *volumes) made(id thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.news[id] = struct{}{}
	// Nothing was written to it yet.
	delete(v.spoilt, id)
}

// isNew tells whether this process has made the volume, so that the machine
// cannot have crashed since.
func (v *volumes) isNew(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, is := v.news[id]
	return is
}

// spoil takes note that something that was written to a volume may be lost.
// It returns false if that was known.
func (v *volumes) spoil(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, known := v.spoilt[id]
	v.spoilt[id] = struct{}{}
	return !known
}

func (v *volumes) isSpoilt(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, is := v.spoilt[id]
	return is
}

// forget drops what is known of a volume that is committed or gone.
func (v *volumes) forget(id thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mapped, id)
	delete(v.news, id)
	delete(v.spoilt, id)
}
