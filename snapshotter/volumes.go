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
	// busyWait bounds how long an operation waits for another process, like a scanner of new
	// devices, to close a device.
	busyWait = 2 * time.Second
	busyStep = 20 * time.Millisecond
)

// volumes activates and deactivates volumes. Each volume has a lock; mu is not held across a call
// to the kernel.
type volumes struct {
	pool  Pool
	locks keyLock[thin.ID]

	mu sync.Mutex
	// pins count the running operations that need a volume to stay active although no record
	// says so yet, or any more.
	pins map[thin.ID]int
	// inodes has those of inactive volumes: they cannot change until activation.
	inodes map[thin.ID]int64
	// usage has that of committed volumes whose records lack it.
	usage map[thin.ID]pool.Usage
	// createdHere are the volumes of active snapshots that this process created, and when.
	createdHere map[thin.ID]time.Time
	// createdLSN are the LSNs of the xfs of unpacks that this process created, from their creation.
	createdLSN map[thin.ID]uint64
	// writesLost are the volumes that may have lost writes.
	writesLost map[thin.ID]struct{}
}

func newVolumes(p Pool) *volumes {
	return &volumes{
		pool:        p,
		pins:        make(map[thin.ID]int),
		inodes:      make(map[thin.ID]int64),
		usage:       make(map[thin.ID]pool.Usage),
		createdHere: make(map[thin.ID]time.Time),
		createdLSN:  make(map[thin.ID]uint64),
		writesLost:  make(map[thin.ID]struct{}),
	}
}

// pin keeps a volume from being deactivated or deleted in the background until the
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

// ensureActive returns the volume, and activates it, read-only or writable, if it is not active so.
func (v *volumes) ensureActive(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (pool.Volume, error) {
	unlock, err := v.locks.lock(ctx, id)
	if err != nil {
		return pool.Volume{}, err
	}
	defer unlock()
	return v.ensureActiveLocked(ctx, id, bytes, readOnly)
}

// ensureActiveLocked is ensureActive for a caller that holds the volume's lock.
func (v *volumes) ensureActiveLocked(
	ctx context.Context, id thin.ID, bytes uint64, readOnly bool,
) (pool.Volume, error) {
	vol, err := v.pool.Lookup(ctx, id)
	if err == nil && vol.Suspended {
		// By a Commit of an earlier process: one of ours would hold the lock.
		if err := v.pool.Resume(id); err != nil {
			return pool.Volume{}, err
		}
		vol.Suspended = false
	}
	switch {
	case err == nil && vol.ReadOnly == readOnly:
		return vol, nil
	case err == nil:
		// A committed volume is still active and writable, or a Usage was interrupted: activate it again.
		if err := v.deactivateWithRetry(ctx, id); err != nil {
			return pool.Volume{}, err
		}
		// gofail: var afterDeactivateToUse struct{}
	case !errors.Is(err, devmapper.ErrNotFound):
		return pool.Volume{}, err
	}
	v.mu.Lock()
	delete(v.inodes, id)
	v.mu.Unlock()
	return v.pool.Activate(ctx, id, bytes, readOnly)
}

// deactivateWithRetry deactivates a volume for an operation that waits for it. It waits up to
// busyWait until a process that has the device open for a short time closes it.
func (v *volumes) deactivateWithRetry(ctx context.Context, id thin.ID) error {
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
			return fmt.Errorf("deactivate volume %d, which is in use (is it still mounted?): %w: %w", id, err,
				errdefs.ErrUnavailable)
		}
	}
}

// countInodes returns the inodes of a volume's file system. An inactive volume is activated for that,
// once. The lock is held: inodes may mount a file system that is mounted, and a volume with a mount of
// ours must not be suspended.
func (v *volumes) countInodes(
	ctx context.Context, id thin.ID, bytes uint64, inodes func(path string) int64,
) (int64, error) {
	v.mu.Lock()
	count, known := v.inodes[id]
	v.mu.Unlock()
	if known {
		return count, nil
	}
	unlock, err := v.locks.lock(ctx, id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if v.pool.IsActive(id) {
		return inodes(v.pool.VolumePath(id)), nil
	}
	vol, err := v.pool.Lookup(ctx, id) // its node may be missing
	if err == nil {
		return inodes(vol.Path), nil
	}
	if !errors.Is(err, devmapper.ErrNotFound) {
		return 0, err
	}
	vol, err = v.pool.Activate(ctx, id, bytes, true)
	if err != nil {
		return 0, err
	}
	// gofail: var afterActivateToMeasure struct{}
	count = inodes(vol.Path)
	// ctx may have ended in the meantime.
	if err := v.deactivateWithRetry(context.WithoutCancel(ctx), id); err != nil {
		return 0, err
	}
	// gofail: var afterMeasure struct{}
	v.mu.Lock()
	v.inodes[id] = count
	v.mu.Unlock()
	return count, nil
}

// usageOf returns the usage that was noted of a committed volume.
func (v *volumes) usageOf(id thin.ID) (usage pool.Usage, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	usage, known = v.usage[id]
	return usage, known
}

func (v *volumes) noteUsage(id thin.ID, usage pool.Usage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.usage[id] = usage
}

// noteCreated records that this process created the volume.
func (v *volumes) noteCreated(id thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.createdHere[id] = time.Now()
	delete(v.writesLost, id) // nothing was written to it yet
}

// wasCreatedHere tells whether this process created the volume: the machine has not crashed since.
func (v *volumes) wasCreatedHere(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, is := v.createdHere[id]
	return is
}

// noteLSN records the LSN of a volume's xfs before anything is written to it.
func (v *volumes) noteLSN(id thin.ID, lsn uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.createdLSN[id] = lsn
}

// hasCreatedLSN tells whether an xfs still has the LSN of its creation.
func (v *volumes) hasCreatedLSN(id thin.ID, lsn uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	created, known := v.createdLSN[id]
	return known && created == lsn
}

// wasCreatedAfter tells whether this process created the volume after t.
func (v *volumes) wasCreatedAfter(id thin.ID, t time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	created, is := v.createdHere[id]
	return is && created.After(t)
}

// noteWritesLost records that a volume may have lost writes. It returns false if that was known.
func (v *volumes) noteWritesLost(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, known := v.writesLost[id]
	v.writesLost[id] = struct{}{}
	return !known
}

// hasWritesLost tells whether a volume may have lost writes.
func (v *volumes) hasWritesLost(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, is := v.writesLost[id]
	return is
}

// forget drops all knowledge of a volume that is committed or deleted.
func (v *volumes) forget(id thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.inodes, id)
	delete(v.usage, id)
	delete(v.createdHere, id)
	delete(v.createdLSN, id)
	delete(v.writesLost, id)
}
