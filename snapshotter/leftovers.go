package snapshotter

import (
	"context"
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
// asked for the first time.
func (l *leftovers) presence(ctx context.Context, id thin.ID) (presence, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.leases) > 0 {
		lease := l.leases[0]
		volumes, err := l.pool.Volumes(ctx, thin.ID(lease.First), thin.ID(lease.Last))
		if err != nil {
			return recent, err
		}
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
	return l.ids[id], nil
}
