package snapshotter

import (
	"context"
	"slices"
	"sync"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// leftovers knows which ids of an earlier run's leases have a volume in the pool. Most were never
// used: deleting each would fill the kernel's log with errors. And a volume that is not whole must
// not be deleted (pool.Pool.Volumes).
type leftovers struct {
	pool Pool
	// reading is held while the pool's metadata is read, which can hang with the disk.
	reading keyLock[struct{}]

	mu     sync.Mutex
	leases []metadata.LeaseRecord // not read yet
	ids    map[thin.ID]presence
}

type presence int

const (
	// recent is a volume of this run: the kernel knows whether it exists.
	recent presence = iota
	absent
	whole
	broken
)

// add has the ids of an earlier run's lease looked up before any of them is deleted.
func (l *leftovers) add(lease metadata.LeaseRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases = append(l.leases, lease)
}

// noteDeleted records that a volume is gone.
func (l *leftovers) noteDeleted(id thin.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.ids[id]; ok {
		l.ids[id] = absent
	}
}

// presence tells what volume of an id the pool has. The first call for an id of an earlier run's
// lease reads all leases; calls for other ids do not wait for that.
func (l *leftovers) presence(ctx context.Context, id thin.ID) (presence, error) {
	if found, known := l.known(id); known {
		return found, nil
	}
	unlock, err := l.reading.lock(ctx, struct{}{})
	if err != nil {
		return recent, err
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
			return recent, err
		}
		l.note(lease, volumes)
	}
}

// known returns the presence of an id, and false if it must be read first.
func (l *leftovers) known(id thin.ID) (presence, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	unread := slices.ContainsFunc(l.leases, func(lease metadata.LeaseRecord) bool {
		return thin.ID(lease.First) <= id && id <= thin.ID(lease.Last)
	})
	return l.ids[id], !unread
}

// next returns a lease that was not read yet.
func (l *leftovers) next() (lease metadata.LeaseRecord, unread bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.leases) == 0 {
		return lease, false
	}
	return l.leases[0], true
}

// note records which volumes the pool has of the next lease.
func (l *leftovers) note(lease metadata.LeaseRecord, volumes map[thin.ID]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = make(map[thin.ID]presence)
	}
	for id := thin.ID(lease.First); id <= thin.ID(lease.Last); id++ {
		switch isWhole, found := volumes[id]; {
		case !found:
			l.ids[id] = absent
		case isWhole:
			l.ids[id] = whole
		default:
			l.ids[id] = broken
		}
	}
	l.leases = l.leases[1:]
}
