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

// maxCopies is the maximum number of frozen copies. Each keeps the blocks that its original has since
// overwritten.
const maxCopies = 64

// copies are the frozen copies that this process made and has not deleted yet. No record owns them: their
// ids are in an open lease, and the start after a crash deletes them.
type copies struct {
	mu     sync.Mutex
	making int
	// originals maps each copy to its original, the volume that was copied.
	originals map[thin.ID]thin.ID
	// served are the copies that Mounts has returned, by original.
	served map[thin.ID]servedCopy
}

// servedCopy is a copy that a client may mount or has mounted.
type servedCopy struct {
	id   thin.ID
	used time.Time // the last time that it was served or found open
}

// begin reserves a place for a new copy; made or failed must follow.
func (c *copies) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.making+len(c.originals) >= maxCopies {
		return fmt.Errorf("there are already %d frozen copies of snapshots, the maximum: wait for their readers to end, or "+
			"unmount them, and try again: %w", maxCopies, errdefs.ErrResourceExhausted)
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

// forget removes a deleted volume from the list of copies. It returns the volume's original, or 0 if it
// was not a copy.
func (c *copies) forget(id thin.ID) (original thin.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	original = c.originals[id]
	delete(c.originals, id)
	return original
}

func (c *copies) exist(original thin.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(slices.Collect(maps.Values(c.originals)), original)
}

func (c *copies) volumes() map[thin.ID]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make(map[thin.ID]bool)
	for id := range c.originals {
		ids[id] = true
	}
	return ids
}

// original returns the original of a copy, and any other volume itself.
func (c *copies) original(id thin.ID) thin.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if original, is := c.originals[id]; is {
		return original
	}
	return id
}

// UnrecordedVolumes returns the volumes that exist on purpose without a record: the spares, except those
// that are being created, and the frozen copies.
func (s *Snapshotter) UnrecordedVolumes() map[thin.ID]bool {
	ids := s.spares.volumes()
	maps.Copy(ids, s.copies.volumes())
	return ids
}

// CountCopies returns the number of frozen copies.
func (s *Snapshotter) CountCopies() int { return len(s.copies.volumes()) }

// deleteCopy deletes a frozen copy. If that fails, mostly because the copy is in use, the reaper retries.
func (s *Snapshotter) deleteCopy(ctx context.Context, id thin.ID) {
	if err := s.settle(ctx, id, true); err != nil {
		s.reaper.add(id, true)
	}
}

// discardLeftover discards a volume without an owner if it may have blocks of its own: a frozen copy, or a
// leftover that only thinsnap can have written to. Unless the volume is in use, a failure does not prevent
// its deletion.
func (s *Snapshotter) discardLeftover(ctx context.Context, id thin.ID, found leftoverKind) (err error) {
	switch {
	case found == volumeOfThinsnap:
		err = s.discardWritten(ctx, id)
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

// discardWritten discards a volume of an earlier run that only thinsnap can have written to. No record has
// its size.
func (s *Snapshotter) discardWritten(ctx context.Context, id thin.ID) error {
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

// discardCopy discards a frozen copy: only the copy still maps the blocks that were overwritten in its
// original.
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

// unusedTurn is discardTurn for a volume that a client may open during the wait, which can be long. A
// virtual machine opens it without O_EXCL, so only the open count shows that.
func (s *Snapshotter) unusedTurn(id thin.ID) blockdev.Turn {
	return func(ctx context.Context) (leave func(), err error) {
		if leave, err = s.discardTurn(ctx); err != nil {
			return nil, err
		}
		vol, err := s.pool.Lookup(ctx, id)
		if err == nil && vol.OpenCount > 1 { // one is the discard's own
			err = fmt.Errorf("it is in use: %w", devmapper.ErrBusy)
		}
		if err != nil {
			leave()
			return nil, err
		}
		return leave, nil
	}
}

// deleteCopies deletes the unused frozen copies when the daemon stops. The next start deletes the others.
func (s *Snapshotter) deleteCopies() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	var all sync.WaitGroup
	for id := range s.copies.volumes() {
		all.Go(func() { s.deleteCopy(ctx, id) })
	}
	waitAtMost(&all, closeWait)
}
