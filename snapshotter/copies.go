package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
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
	// originals has the copies, and the volume of which each is a copy.
	originals map[thin.ID]thin.ID
	// served are the copies that Mounts has returned, by their originals.
	served map[thin.ID]servedCopy
}

// servedCopy is a copy that a client may mount, or has mounted.
type servedCopy struct {
	id   thin.ID
	used time.Time // when it was last known to be open, or served
}

// begin counts a copy that will be made; made or failed must follow.
func (c *copies) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.making+len(c.originals) >= maxCopies {
		return fmt.Errorf("there are %d frozen copies of snapshots already, the most that are made: wait for what reads "+
			"them to end, or unmount them, and try again: %w", maxCopies, errdefs.ErrResourceExhausted)
	}
	c.making++
	return nil
}

func (c *copies) made(id, original thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.originals == nil {
		c.originals = make(map[thin.ID]thin.ID)
	}
	c.making--
	c.originals[id] = original
}

func (c *copies) failed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.making--
}

// forget is for a volume that was deleted. It returns the volume of which that was a copy, 0 if it was none.
func (c *copies) forget(id thin.ID) (original thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	original = c.originals[id]
	delete(c.originals, id)
	return original
}

// exist returns whether a volume has copies.
func (c *copies) exist(original thin.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(slices.Collect(maps.Values(c.originals)), original)
}

// volumes returns the copies.
func (c *copies) volumes() map[thin.ID]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make(map[thin.ID]bool)
	for id := range c.originals {
		ids[id] = true
	}
	return ids
}

// original returns the volume of which another one is a copy, and the volume itself if it is no copy.
func (c *copies) original(id thin.ID) thin.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if original, is := c.originals[id]; is {
		return original
	}
	return id
}

// UnrecordedVolumes returns the volumes that exist on purpose without a record: the spares that are ready, and
// the frozen copies.
func (s *Snapshotter) UnrecordedVolumes() map[thin.ID]bool {
	ids := s.spares.volumes()
	maps.Copy(ids, s.copies.volumes())
	return ids
}

// CountCopies returns the number of frozen copies.
func (s *Snapshotter) CountCopies() int { return len(s.copies.volumes()) }

// deleteCopy deletes a frozen copy, or has it deleted in the background when it is not in use any more.
func (s *Snapshotter) deleteCopy(ctx context.Context, id thin.ID) {
	if err := s.settle(ctx, id, true); err != nil {
		s.reaper.add(id, true)
	}
}

// discardLeftover is discard for a volume that nothing owns, if others may not have all of its blocks: for a
// frozen copy, and for what a crash has left of those. A failure does not keep it from being deleted, unless
// it is in use.
func (s *Snapshotter) discardLeftover(ctx context.Context, id thin.ID, found presence) (err error) {
	switch {
	case found == own:
		err = s.discardOwn(ctx, id)
	case s.copies.original(id) != id:
		err = s.discardCopy(ctx, id)
	}
	switch {
	case err == nil, isOneOf(err, devmapper.ErrNotFound, thin.ErrNoDevice):
		return nil
	case errors.Is(err, devmapper.ErrBusy), ctx.Err() != nil:
		return err
	}
	log.G(ctx).WithField("device", s.pool.VolumePath(id)).WithError(err).Warn("deleting a volume without a discard")
	return nil
}

// discardOwn is discard for a volume of an earlier run to which only thinsnap can have written. Its size is
// recorded nowhere.
func (s *Snapshotter) discardOwn(ctx context.Context, id thin.ID) error {
	writes, err := s.pool.Writes(ctx, id)
	if err != nil || writes.Mapped == 0 {
		return err
	}
	status, err := s.pool.RecentStatus(ctx, time.Minute)
	if err != nil {
		return err
	}
	return s.discard(ctx, id, nil, writes.End*status.BlockBytes)
}

// discardCopy is discard for a frozen copy: it alone still has what was written again in its original.
func (s *Snapshotter) discardCopy(ctx context.Context, id thin.ID) error {
	vol, err := s.pool.Lookup(ctx, id)
	switch {
	case err != nil:
		return err
	case vol.OpenCount > 0:
		return fmt.Errorf("frozen copy %d is in use: %w", id, devmapper.ErrBusy)
	}
	if err := s.unseal(id); err != nil {
		return err
	}
	err = s.pool.Discard(ctx, id, s.unusedTurn(id))
	if errors.Is(err, devmapper.ErrBusy) {
		err = errors.Join(err, s.pool.SetReadOnly(id, true))
	}
	if err != nil {
		return fmt.Errorf("discard frozen copy %d: %w", id, err)
	}
	return nil
}

// unusedTurn is discardTurn for a volume that a client may open at any time, as a virtual machine does: without
// O_EXCL. The wait can be long.
func (s *Snapshotter) unusedTurn(id thin.ID) blockdev.Turn {
	return func(ctx context.Context) (leave func(), err error) {
		if leave, err = s.discardTurn(ctx); err != nil {
			return nil, err
		}
		vol, err := s.pool.Lookup(ctx, id)
		if err == nil && vol.OpenCount > 1 { // the discard has it open
			err = fmt.Errorf("it is in use: %w", devmapper.ErrBusy)
		}
		if err != nil {
			leave()
			return nil, err
		}
		return leave, nil
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
