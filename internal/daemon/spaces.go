package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// spacesTime limits how long one list of snapshots reads the pool's metadata. Sizes that were
	// not read by then are unknown, or come from an earlier list.
	spacesTime = time.Second
	// spacesRest is the pause between two readings of the exclusive bytes, in multiples of the
	// duration of the last one: frequent lists spend at most a tenth of the time on it.
	spacesRest = 9
)

// space is the space of a snapshot, in bytes; nil if unknown.
type space struct{ used, shared, exclusive *uint64 }

// spaces measures all snapshots. Any write can change a snapshot's exclusive bytes, so they are
// read again once the pool has committed and a pause has passed.
type spaces struct {
	clock   func() time.Time // nil means time.Now
	reading sync.Mutex

	mu        sync.Mutex
	exclusive map[thin.ID]exclusiveBytes
	// commit is the commit for which all of exclusive was read.
	commit thinmeta.Superblock
	next   time.Time
}

type exclusiveBytes struct {
	bytes   uint64
	unknown bool // reading it failed
	at      time.Time
}

// measurer is the part of a Snapshotter that measures.
type measurer interface {
	UsageOf(ctx context.Context, rec metadata.Snapshot, parent uint32) (pool.Usage, error)
	ExclusiveOf(ctx context.Context, rec metadata.Snapshot) (uint64, error)
}

// committer reports a pool's last commit.
type committer interface {
	Committed(ctx context.Context) (thinmeta.Superblock, error)
}

// of returns the space of each of the given snapshots, which must be all snapshots.
func (s *spaces) of(ctx context.Context, p committer, m measurer, records []metadata.Snapshot) []space {
	until := s.now().Add(spacesTime)
	ctx, cancel := context.WithTimeout(ctx, spacesTime) // a large volume may take longer
	defer cancel()
	volumes := make(map[string]uint32, len(records))
	for _, rec := range records {
		volumes[rec.Key] = rec.VolumeID
	}
	all := make([]space, len(records))
	mapped := make(map[string]*uint64, len(records))
	for i, rec := range records {
		if rec.Kind == snapshots.KindView || !rec.Usage.Exact && s.now().After(until) {
			continue
		}
		// Meanwhile a snapshot or the pool may be removed: the rest is still measured.
		if usage, err := m.UsageOf(ctx, rec, volumes[rec.Parent]); err == nil {
			shared := usage.Mapped - usage.Own
			all[i].used, all[i].shared, mapped[rec.Key] = &usage.Own, &shared, &usage.Mapped
		}
	}
	exclusive := s.read(ctx, p, m, records, until)
	for i, rec := range records {
		if rec.Kind == snapshots.KindView { // a View has no volume
			all[i] = space{used: new(uint64), shared: mapped[rec.Parent], exclusive: new(uint64)}
		} else if e, known := exclusive[thin.ID(rec.VolumeID)]; known && !e.unknown {
			all[i].exclusive = &e.bytes
		}
	}
	return all
}

// read reads the exclusive bytes until the given time, and returns all known values.
func (s *spaces) read(
	ctx context.Context, p committer, m measurer, records []metadata.Snapshot, until time.Time,
) map[thin.ID]exclusiveBytes {
	if !s.reading.TryLock() { // another list is reading
		return s.known()
	}
	defer s.reading.Unlock()
	known, began := s.known(), s.now()
	commit, err := p.Committed(ctx)
	if err != nil {
		return known
	}
	s.mu.Lock()
	isKnown := commit == s.commit || began.Before(s.next)
	s.mu.Unlock()

	all := make(map[thin.ID]exclusiveBytes, len(records))
	var missing []metadata.Snapshot
	for _, rec := range records {
		if rec.Kind == snapshots.KindView {
			continue
		}
		e, ok := known[thin.ID(rec.VolumeID)]
		if ok {
			all[thin.ID(rec.VolumeID)] = e
		}
		if !ok || !isKnown {
			missing = append(missing, rec)
		}
	}
	if len(missing) == 0 {
		return all
	}
	slices.SortStableFunc(missing, func(a, b metadata.Snapshot) int {
		return all[thin.ID(a.VolumeID)].at.Compare(all[thin.ID(b.VolumeID)].at)
	})
	isComplete := true
	for _, rec := range missing {
		if s.now().After(until) || ctx.Err() != nil {
			isComplete = false
			break
		}
		bytes, err := m.ExclusiveOf(ctx, rec)
		isComplete = isComplete && err == nil
		if e, ok := all[thin.ID(rec.VolumeID)]; ok && err != nil && ctx.Err() != nil {
			all[thin.ID(rec.VolumeID)] = exclusiveBytes{e.bytes, e.unknown, began} // last in the next reading
			break
		}
		all[thin.ID(rec.VolumeID)] = exclusiveBytes{bytes, err != nil, began}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exclusive = all
	if !isKnown {
		s.commit, s.next = commit, s.now().Add(spacesRest*s.now().Sub(began))
	}
	if !isComplete {
		s.commit = thinmeta.Superblock{}
	}
	return all
}

func (s *spaces) now() time.Time {
	if s.clock == nil {
		return time.Now()
	}
	return s.clock()
}

// known returns the values of the last reading, which nothing modifies.
func (s *spaces) known() map[thin.ID]exclusiveBytes {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exclusive
}
