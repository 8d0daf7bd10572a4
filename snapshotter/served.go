package snapshotter

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// servedIdle is how long an unopened served copy is kept.
	servedIdle = 10 * time.Minute
	// servedStep is the time between two checks whether the served copies are open.
	servedStep = time.Minute
)

// serveCopy returns the mount of a frozen copy of an active snapshot that is open but not mounted. The
// caller holds the volume's lock. The copy replaces an earlier one. Like that of bindMounts, the mount has
// no id mapping.
func (s *Snapshotter) serveCopy(ctx context.Context, rec metadata.Snapshot, vol pool.Volume) ([]mount.Mount, error) {
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	copied, err := s.copyWhole(ctx, rec)
	if err != nil {
		return nil, err
	}
	// gofail: var afterServedCopy struct{}
	if ctx.Err() != nil {
		s.reaper.add(copied.ID, true)
		return nil, context.Cause(ctx)
	}
	if replaced := s.copies.serve(copied.ID, vol.ID, time.Now()); replaced != 0 {
		s.reaper.add(replaced, true)
	}
	// gofail: var afterServe struct{}

	// A client that only reads cannot be told from one that starts the container, which would then run on
	// the copy.
	log.G(ctx).WithField("device", vol.Path).WithField("copy", copied.Path).
		Warn("the snapshot is open, but not mounted: returning a mount of a read-only copy. If no virtual machine has it " +
			"open, end the process that has it open (fuser -v DEVICE), and start the container again")
	view := rec
	view.Kind = snapshots.KindView
	return []mount.Mount{{Type: rec.Filesystem, Source: copied.Path, Options: s.deviceOptions(view)}}, nil
}

// serve records that Mounts returns a copy. It returns the replaced copy, or 0.
func (c *copies) serve(id, original thin.ID, now time.Time) (replaced thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.served == nil {
		c.served = make(map[thin.ID]servedCopy)
	}
	replaced = c.served[original].id
	c.served[original] = servedCopy{id, now}
	return replaced
}

// dropServed deletes the served copy of a volume that no active snapshot has any more.
func (s *Snapshotter) dropServed(original thin.ID) {
	if id := s.copies.takeServed(original); id != 0 {
		s.reaper.add(id, true)
	}
}

// takeServed takes the copy of a volume out of the served ones, and returns it, or 0.
func (c *copies) takeServed(original thin.ID) (id thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id = c.served[original].id
	delete(c.served, original)
	return id
}

// beginCopy calls copies.begin. If there are too many copies, it deletes the least recently used served
// copy that is not open.
func (s *Snapshotter) beginCopy(ctx context.Context) error {
	err := s.copies.begin()
	if err == nil {
		return nil
	}
	served := s.copies.servedNow()
	oldest := slices.SortedFunc(maps.Keys(served), func(a, b thin.ID) int {
		return served[a].used.Compare(served[b].used)
	})
	for _, original := range oldest {
		id := served[original].id
		vol, lookupErr := s.pool.Lookup(ctx, id)
		if lookupErr != nil || vol.OpenCount > 0 || !s.copies.drop(original, served[original]) {
			continue
		}
		s.deleteCopy(ctx, id)
		if err = s.copies.begin(); err == nil {
			return nil
		}
	}
	return err
}

// drop takes a copy out of the served ones, and returns false if it was replaced.
func (c *copies) drop(original thin.ID, served servedCopy) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.served[original] != served {
		return false
	}
	delete(c.served, original)
	return true
}

// watchServed drops unused served copies until ctx ends.
func (s *Snapshotter) watchServed(ctx context.Context) {
	ticker := time.NewTicker(servedStep)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.dropUnused(ctx, time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// dropUnused deletes the served copies that were last served or open at least servedIdle ago.
func (s *Snapshotter) dropUnused(ctx context.Context, now time.Time) {
	for original, served := range s.copies.servedNow() {
		vol, err := s.pool.Lookup(ctx, served.id)
		isOpen := err == nil && vol.OpenCount > 0
		if s.copies.noteUse(original, served, isOpen, now) {
			log.G(ctx).WithField("device", s.pool.VolumePath(served.id)).Debug("deleting a frozen copy that is not used")
			s.reaper.add(served.id, true)
		}
	}
}

func (c *copies) servedNow() map[thin.ID]servedCopy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.served)
}

// noteUse records whether a served copy is open, and returns true if it must be deleted.
func (c *copies) noteUse(original thin.ID, served servedCopy, isOpen bool, now time.Time) (isUnused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.served[original] != served: // it was replaced
	case isOpen:
		c.served[original] = servedCopy{served.id, now}
	case now.Sub(served.used) >= servedIdle:
		delete(c.served, original)
		return true
	}
	return false
}
