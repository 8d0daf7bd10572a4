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
	// busyWait bounds how long an operation waits for another process to close a device, such as a scanner
	// of new devices.
	busyWait = 2 * time.Second
	busyStep = 20 * time.Millisecond
)

// volumes activates and deactivates volumes. Each volume has a lock. mu is not held across a call to the
// kernel.
type volumes struct {
	pool  Pool
	locks keyLock[thin.ID]

	mu sync.Mutex
	// pins counts, by volume, the running operations that need the volume active before a record shows
	// that.
	pins map[thin.ID]int
	// inodes has the counts of inactive volumes, which cannot change until the activation.
	inodes map[thin.ID]int64
	// usage has the usage of committed volumes whose records lack it.
	usage map[thin.ID]pool.Usage
	// createdHere has the volumes of active snapshots that this process created, with the time.
	createdHere map[thin.ID]time.Time
	// createdLSN has the LSN of the xfs of each unpack that this process created, as of its creation.
	createdLSN map[thin.ID]uint64
	// writesLost has the volumes that may have lost writes, and whether the store has that.
	writesLost map[thin.ID]bool
}

func newVolumes(p Pool) *volumes {
	return &volumes{
		pool:        p,
		pins:        make(map[thin.ID]int),
		inodes:      make(map[thin.ID]int64),
		usage:       make(map[thin.ID]pool.Usage),
		createdHere: make(map[thin.ID]time.Time),
		createdLSN:  make(map[thin.ID]uint64),
		writesLost:  make(map[thin.ID]bool),
	}
}

// pin prevents settle and SettleDevice from deactivating or deleting a volume until unpin is called.
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

// ensureActive returns the volume, active and read-only or writable as asked for.
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
		// An operation of an earlier process has suspended it: one of this process would hold the lock.
		if err := v.pool.Resume(id); err != nil {
			return pool.Volume{}, err
		}
		vol.Suspended = false
	}
	switch {
	case err == nil && vol.ReadOnly == readOnly:
		return vol, nil
	case err == nil:
		// The volume of a committed snapshot can still be writable. An interrupted Usage can leave that of
		// an active one read-only.
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

// deactivateWithRetry deactivates a volume for an operation that waits for that. It waits up to busyWait
// for another process to close the device.
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

// countInodes returns the used inodes of a volume's file system. It activates an inactive volume once. It
// calls inodes, which may add a mount, under the lock: a volume with thinsnap's own mount must not be
// suspended.
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
	vol, err := v.pool.Lookup(ctx, id) // creates a missing node
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
	// ctx may have ended meanwhile.
	if err := v.deactivateWithRetry(context.WithoutCancel(ctx), id); err != nil {
		return 0, err
	}
	// gofail: var afterMeasure struct{}
	v.mu.Lock()
	v.inodes[id] = count
	v.mu.Unlock()
	return count, nil
}

// usageOf returns the usage that noteUsage has noted.
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

func (v *volumes) noteCreated(id thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.createdHere[id] = time.Now()
	delete(v.writesLost, id) // nothing was written to it yet
}

// wasCreatedHere reports whether this process created the volume: the machine has not crashed since.
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

// hasCreatedLSN reports whether an xfs still has the LSN of its creation.
func (v *volumes) hasCreatedLSN(id thin.ID, lsn uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	created, known := v.createdLSN[id]
	return known && created == lsn
}

func (v *volumes) wasCreatedAfter(id thin.ID, t time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	created, is := v.createdHere[id]
	return is && created.After(t)
}

// noteWritesLost records that a volume may have lost writes. It returns false if that was already recorded.
// Snapshotter.storeWritesLost stores it.
func (v *volumes) noteWritesLost(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, known := v.writesLost[id]
	if !known {
		v.writesLost[id] = false
	}
	return !known
}

// unstoredWritesLost returns the volumes of noteWritesLost that the store lacks.
func (v *volumes) unstoredWritesLost() (ids []thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, stored := range v.writesLost {
		if !stored {
			ids = append(ids, id)
		}
	}
	return ids
}

// noteWritesLostStored records that the store has the marks of these volumes.
func (v *volumes) noteWritesLostStored(ids []thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range ids {
		if _, is := v.writesLost[id]; is {
			v.writesLost[id] = true
		}
	}
}

func (v *volumes) hasWritesLost(id thin.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, is := v.writesLost[id]
	return is
}

// forget drops all that is noted about a volume that was committed or deleted.
func (v *volumes) forget(id thin.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.inodes, id)
	delete(v.usage, id)
	delete(v.createdHere, id)
	delete(v.createdLSN, id)
	delete(v.writesLost, id)
}
