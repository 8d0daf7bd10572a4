package metadata

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Rebuild writes the counters, the index of children and the owners of device ids again from the
// records, and deletes marks of lost writes without a snapshot: it repairs the Problems that are
// Derived. If two records own one id, it returns FailedPrecondition and changes nothing.
//
// It removes no owner of a device id: if its record is lost, the volume would be deleted as a
// leftover. While a snapshot or its parent cannot be read, it removes no child from the index: a
// View would lose its volume if its parent seemed to have no children.
func (s *Store) Rebuild(ctx context.Context) error {
	err := s.Update(ctx, func(tx *Tx) error {
		c := &checker{ctx: ctx, tx: tx}
		if err := c.run(); err != nil {
			return err
		}
		if c.disputed {
			return fmt.Errorf("two records own one device id: %w", errdefs.ErrFailedPrecondition)
		}
		return c.rewrite()
	})
	if err != nil {
		return fmt.Errorf("rebuild the indexes of %s: %w", s.path, err)
	}
	return nil
}

// rewrite writes the indexes.
func (c *checker) rewrite() error {
	t := c.tx
	for device, o := range c.owners {
		if indexed, ok := t.Owner(device); ok && indexed == o {
			continue
		}
		if err := t.setOwner(device, o); err != nil {
			return err
		}
	}
	for k := range c.children {
		if err := t.put(t.buckets.children, []byte(k), nil); err != nil {
			return err
		}
	}
	for _, k := range c.strayChildren {
		if err := t.delete(t.buckets.children, k); err != nil {
			return err
		}
	}
	for _, k := range c.strayMarks {
		if err := t.delete(t.buckets.meta, k); err != nil {
			return err
		}
	}
	for _, space := range t.KeySpaces() {
		if err := t.setCountersOf(space, *c.countedIn(space)); err != nil {
			return err
		}
	}
	return t.setCounters(c.counted)
}
