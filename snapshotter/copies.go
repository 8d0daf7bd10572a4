package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// maxCopies is the number of frozen copies that can exist at a time. Each keeps the blocks that were
// written again in the original since.
const maxCopies = 64

// copies are the frozen copies that this process made and that are not deleted yet. No record owns
// them: their ids are in an open lease, and a start after a crash deletes them.
type copies struct {
	mu     sync.Mutex
	making int
	ids    map[thin.ID]struct{}
}

// begin counts a copy that will be made; made or failed must follow.
func (c *copies) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.making+len(c.ids) >= maxCopies {
		return fmt.Errorf("there are %d frozen copies of snapshots already, the most that are made: wait for what reads "+
			"them to end, or unmount them, and try again: %w", maxCopies, errdefs.ErrResourceExhausted)
	}
	c.making++
	return nil
}

func (c *copies) made(id thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids == nil {
		c.ids = make(map[thin.ID]struct{})
	}
	c.making--
	c.ids[id] = struct{}{}
}

func (c *copies) failed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.making--
}

// forget is for a volume that was deleted.
func (c *copies) forget(id thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ids, id)
}

// volumes returns the copies.
func (c *copies) volumes() map[thin.ID]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make(map[thin.ID]bool)
	for id := range c.ids {
		ids[id] = true
	}
	return ids
}

// UnrecordedVolumes returns the volumes that exist on purpose without a record: the spares that are ready, and
// the frozen copies.
func (s *Snapshotter) UnrecordedVolumes() map[thin.ID]bool {
	ids := s.spares.volumes()
	maps.Copy(ids, s.copies.volumes())
	return ids
}

// deleteCopy deletes a frozen copy, or has it deleted in the background when it is not in use any more.
func (s *Snapshotter) deleteCopy(ctx context.Context, id thin.ID) {
	if err := s.settle(ctx, id, true); err != nil {
		s.reaper.add(id, true)
	}
}

// deleteCopies deletes the frozen copies that are not in use, when the daemon stops. The next start deletes
// the others.
func (s *Snapshotter) deleteCopies() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	var all sync.WaitGroup
	for id := range s.copies.volumes() {
		all.Go(func() { s.deleteCopy(ctx, id) })
	}
	waitAtMost(&all, closeWait)
}
