package snapshotter

import (
	"context"
	"slices"
	"sync"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// leftovers knows which volumes an earlier run can have left that nobody owns. Most
// ids of its leases were never used: to ask the kernel to delete each would fill its
// log with complaints. And a volume that is not whole must not be deleted
// (pool.Pool.Volumes).
type leftovers struct {
	pool Pool
	// reading is held while they are read about, which can hang with the disk.
	reading keyLock[struct{}]

	mu     sync.Mutex
	leases []metadata.LeaseRecord // that were not read about yet
	ids    map[thin.ID]presence
}

type presence int

const (
	// recent: it is this run's own, and the kernel knows.
	recent presence = iota
	absent
	whole
	broken
)

// add has the ids of an earlier run's lease looked at before any is deleted.
func (l *leftovers) add(lease metadata.LeaseRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases = append(l.leases, lease)
}

// deleted notes that a volume is no more.
func (l *leftovers) deleted(id thin.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.ids[id]; ok {
		l.ids[id] = absent
	}
}

// presence tells what the pool has of an id. It reads about all of them when it is
// asked for one of them for the first time; whoever asks for another's is not held up.
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
		l.read(lease, volumes)
	}
}

// known returns what is known of an id, and false if that must be read first.
func (l *leftovers) known(id thin.ID) (presence, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	unread := slices.ContainsFunc(l.leases, func(lease metadata.LeaseRecord) bool {
		return thin.ID(lease.First) <= id && id <= thin.ID(lease.Last)
	})
	return l.ids[id], !unread
}

// next returns a lease that was not read about yet.
func (l *leftovers) next() (lease metadata.LeaseRecord, unread bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.leases) == 0 {
		return lease, false
	}
	return l.leases[0], true
}

// read takes note of what the pool has of the lease that was next.
func (l *leftovers) read(lease metadata.LeaseRecord, volumes map[thin.ID]bool) {
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
