package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// leftovers knows which ids in the leases of an earlier run have a volume. Most ids were never used, and
// deleting each would fill the kernel's log with errors. A volume whose mappings the kernel has lost must
// not be deleted (pool.Pool.Volumes).
type leftovers struct {
	pool Pool
	// reading is held while the pool's metadata is read, which can hang with the disk.
	reading keyLock[struct{}]

	mu     sync.Mutex
	leases []metadata.LeaseRecord // not read yet
	ids    map[thin.ID]leftoverKind
}

type leftoverKind int

const (
	// volumeOfThisRun is an id of this run: only the kernel knows whether it has a volume.
	volumeOfThisRun leftoverKind = iota
	volumeAbsent
	// volumeOfClient is a volume that a client may have written to: the store may be older than the pool.
	volumeOfClient
	// volumeOfThinsnap is a volume that only thinsnap can have written to (idSource.claim).
	volumeOfThinsnap
	// volumeBroken is a volume whose mappings the kernel has lost.
	volumeBroken
)

// add adds a lease of an earlier run: its ids are looked up before one of them is deleted.
func (l *leftovers) add(lease metadata.LeaseRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases = append(l.leases, lease)
}

func (l *leftovers) noteDeleted(id thin.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.ids[id]; ok {
		l.ids[id] = volumeAbsent
	}
}

// kindOf returns the kind of the volume with an id. The first call for an id of an earlier run's lease
// reads all leases; calls for other ids do not wait for that.
func (l *leftovers) kindOf(ctx context.Context, id thin.ID) (leftoverKind, error) {
	if found, known := l.known(id); known {
		return found, nil
	}
	unlock, err := l.reading.lock(ctx, struct{}{})
	if err != nil {
		return volumeOfThisRun, err
	}
	defer unlock()
	for {
		lease, unread := l.next()
		if !unread {
			found, _ := l.known(id)
			return found, nil
		}
		volumes, err := l.pool.Volumes(ctx, thin.ID(lease.First), thin.ID(lease.Last))
		if err != nil {
			return volumeOfThisRun, err
		}
		l.note(lease, volumes)
	}
}

// known returns the kind of an id, and false if it must be read first.
func (l *leftovers) known(id thin.ID) (leftoverKind, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	unread := slices.ContainsFunc(l.leases, func(lease metadata.LeaseRecord) bool {
		return thin.ID(lease.First) <= id && id <= thin.ID(lease.Last)
	})
	return l.ids[id], !unread
}

func (l *leftovers) next() (lease metadata.LeaseRecord, unread bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.leases) == 0 {
		return lease, false
	}
	return l.leases[0], true
}

// note records which ids of the next lease have a volume.
func (l *leftovers) note(lease metadata.LeaseRecord, volumes map[thin.ID]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = make(map[thin.ID]leftoverKind)
	}
	for id := thin.ID(lease.First); id <= thin.ID(lease.Last); id++ {
		switch isWhole, found := volumes[id]; {
		case !found:
			l.ids[id] = volumeAbsent
		case isWhole && lease.Written:
			l.ids[id] = volumeOfThinsnap
		case isWhole:
			l.ids[id] = volumeOfClient
		default:
			l.ids[id] = volumeBroken
		}
	}
	l.leases = l.leases[1:]
}

// keepWritten keeps a leftover that a client may have written to, or that has snapshots: the store is then
// older than the pool, because a leftover of a crash maps at most its origin's blocks. A volume that may
// be foreign is kept too. It returns false if the volume can be deleted.
func (s *Snapshotter) keepWritten(ctx context.Context, id thin.ID) (kept bool, err error) {
	if err := s.pool.Deactivate(ctx, id); err != nil {
		return false, fmt.Errorf("deactivate leftover volume %d: %w", id, err)
	}
	writes, err := s.pool.Writes(ctx, id)
	if errors.Is(err, thin.ErrNoDevice) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find out whether leftover volume %d was written to: %w", id, err)
	}
	untouched := !writes.SinceCreation && !writes.Snapshotted
	if untouched {
		if ours, err := s.isProvedOurs(ctx, id); ours || err != nil {
			return false, err
		}
	}
	status, err := s.pool.RecentStatus(ctx, time.Minute)
	if err != nil {
		return false, err
	}
	rec := metadata.KeptRecord{
		VolumeID: uint32(id), Mapped: writes.Mapped * status.BlockBytes, Size: writes.End * status.BlockBytes, Found: now(),
	}
	// gofail: var beforeKeep struct{}
	if err := s.store.Update(ctx, func(tx *metadata.Tx) error { return tx.Keep(rec) }); err != nil {
		return false, fmt.Errorf("keep leftover volume %d: %w", id, err)
	}
	// gofail: var afterKeep struct{}
	logger := log.G(ctx).WithField("device", s.pool.VolumePath(id)).WithField("bytes", rec.Mapped)
	if untouched {
		logger.Warn("keeping a volume that the store does not know, and that may be foreign: " +
			"`thinsnap leftovers` lists it")
	} else {
		logger.Warn("keeping a volume that " +
			"the store does not know, but that was written to: is the store older than the pool? `thinsnap leftovers` lists it")
	}
	s.ids.resolve(id)
	return true, nil
}

// isProvedOurs reports whether thinsnap created an unwritten leftover. In thinsnap's own pool nothing else
// creates volumes. In a foreign pool another user may have used a leased id, so the leftover must have the
// mappings of a volume that a record owns.
func (s *Snapshotter) isProvedOurs(ctx context.Context, id thin.ID) (bool, error) {
	rec, err := s.store.Pool(ctx)
	if err != nil || !rec.Foreign() {
		return err == nil, err
	}
	twins, err := s.pool.Twins(ctx, id)
	if err != nil {
		return false, fmt.Errorf("find the origin of leftover volume %d: %w", id, err)
	}
	ours := false
	err = s.store.View(ctx, func(tx *metadata.Tx) error {
		ours = slices.ContainsFunc(twins, func(twin thin.ID) bool {
			owner, owned := tx.Owner(uint32(twin))
			return owned && owner.Kind != metadata.OwnerKept
		})
		return nil
	})
	return ours, err
}

// Leftovers returns the kept leftovers, lowest id first.
func (s *Snapshotter) Leftovers(ctx context.Context) (kept []metadata.KeptRecord, err error) {
	err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		kept, err = tx.Kept()
		return err
	})
	return kept, err
}

// RemoveLeftover deletes a kept leftover in the background. Any other id is errdefs.ErrNotFound.
func (s *Snapshotter) RemoveLeftover(ctx context.Context, id thin.ID) error {
	if err := s.store.Update(ctx, func(tx *metadata.Tx) error { return tx.DiscardKept(uint32(id), now()) }); err != nil {
		return err
	}
	log.G(ctx).WithField("device", s.pool.VolumePath(id)).Info("removing a leftover volume")
	s.reaper.add(id, false)
	return nil
}
