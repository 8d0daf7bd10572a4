package metadata

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
)

func (c *checker) readSnapshots() error {
	return c.each(c.tx.buckets.snapshots, func(k, v []byte) {
		s, err := decodeSnapshot(string(k), v)
		if err != nil {
			c.report(fmt.Sprintf("snapshot %q", k), "%v", err)
			c.incomplete = true
			return
		}
		c.snapshot[s.Key] = s
		*c.counted.kind(s.Kind)++
		if space, _ := SplitKey(s.Key); space != "" {
			*c.countedIn(space).kind(s.Kind)++
		}
	})
}

func (c *checker) checkSnapshots() error {
	// Sorted, so that of two records that own one device id, the same one always wins.
	for _, key := range slices.Sorted(maps.Keys(c.snapshot)) {
		s := c.snapshot[key]
		subject := fmt.Sprintf("snapshot %q", s.Key)
		var parent Snapshot
		if err := CheckKey(s.Key); err != nil {
			c.report(subject, "%v", err)
		} else if err := c.tx.requireKeySpace(s.Key); err != nil {
			c.report(subject, "%v", err)
		}
		if s.Parent != "" {
			if err := sameKeySpace(s.Parent, s.Key); err != nil {
				c.report(subject, "%v", err)
			}
			if parent = c.snapshot[s.Parent]; parent.Key != "" {
				c.checkParent(subject, s, parent)
			} else {
				c.report(subject, "its parent %q does not exist", s.Parent)
				c.incomplete = true
			}
		}
		if s.Kind != snapshots.KindView {
			c.own(s.VolumeID, Owner{Kind: OwnerSnapshot, Key: s.Key})
		} else if s.Parent == "" {
			if b, err := c.tx.Base(s.Filesystem, s.Size); err != nil || b.VolumeID != s.VolumeID {
				c.report(subject, "shows device %d, which is not the base volume %s", s.VolumeID, baseName(s.Filesystem, s.Size))
			}
		}
		if s.Kind != snapshots.KindCommitted && s.Usage != (Usage{}) {
			c.report(subject, "has a usage, but is not committed")
		}
		if k := childKey(s, parent); k != nil {
			c.children[string(k)] = true
		}
	}
	return nil
}

func (c *checker) checkParent(subject string, s, parent Snapshot) {
	if parent.Kind != snapshots.KindCommitted {
		c.report(subject, "its parent %q is not committed", parent.Key)
	}
	if s.Filesystem != parent.Filesystem {
		c.report(subject, "has file system %q, its parent %q has %q", s.Filesystem, parent.Key, parent.Filesystem)
	}
	if s.Kind == snapshots.KindView {
		if s.VolumeID != parent.VolumeID || s.Size != parent.Size {
			c.report(subject, "shows device %d of %d bytes, its parent %q has device %d of %d bytes",
				s.VolumeID, s.Size, parent.Key, parent.VolumeID, parent.Size)
		}
	} else if s.Size < parent.Size {
		c.report(subject, "has %d bytes, its parent %q has %d", s.Size, parent.Key, parent.Size)
	}
}

// checkAncestry finds snapshots that are their own ancestors. It visits each snapshot once.
func (c *checker) checkAncestry() error {
	rooted := make(map[string]bool)
	for _, key := range slices.Sorted(maps.Keys(c.snapshot)) {
		above := make(map[string]bool)
		for up := c.snapshot[key]; up.Key != "" && !rooted[up.Key]; up = c.snapshot[up.Parent] {
			if above[up.Key] {
				c.report(fmt.Sprintf("snapshot %q", up.Key), "is its own ancestor")
				break
			}
			above[up.Key] = true
		}
		for k := range above {
			rooted[k] = true
		}
	}
	return nil
}

func (c *checker) checkBases() error {
	return c.each(c.tx.buckets.bases, func(k, v []byte) {
		b, err := decodeBase(k, v)
		if err != nil {
			c.report(fmt.Sprintf("base volume %q", k), "%v", err)
			return
		}
		c.own(b.VolumeID, Owner{Kind: OwnerBase, Key: baseName(b.Filesystem, b.Size)})
	})
}

// showDevice returns a device id as the other messages show it, or the bytes of a key that is none.
func showDevice(key []byte) string {
	id, err := decodeDevice(key)
	if err != nil {
		return fmt.Sprintf("0x%x", key)
	}
	return strconv.FormatUint(uint64(id), 10)
}

func (c *checker) checkTrash() error {
	return c.each(c.tx.buckets.trash, func(k, v []byte) {
		c.counted.trash++
		r, err := decodeTrash(k, v)
		if err != nil {
			c.report("trash "+showDevice(k), "%v", err)
			return
		}
		c.own(r.VolumeID, Owner{Kind: OwnerTrash})
	})
}

func (c *checker) checkKept() error {
	return c.tx.eachKept(func(k, v []byte) error {
		r, err := decodeKept(k, v)
		if err != nil {
			c.report("leftover "+showDevice(k[len(keyKept):]), "%v", err)
			return c.ctx.Err()
		}
		c.own(r.VolumeID, Owner{Kind: OwnerKept})
		return c.ctx.Err()
	})
}

func (c *checker) checkWritesLost() error {
	return c.tx.eachWritesLost(func(k []byte, device uint32, key string) error {
		if _, isRead := c.snapshot[key]; !isRead && c.tx.Exists(key) {
			return c.ctx.Err() // readSnapshots has reported it; its mark stays for when it can be read
		}
		if !c.tx.ownsActive(device, key) {
			c.reportDerived(fmt.Sprintf("device %d", device),
				"has a mark of lost writes of snapshot %q, which is not active with it", key)
			c.strayMarks = append(c.strayMarks, bytes.Clone(k))
		}
		return c.ctx.Err()
	})
}

func (c *checker) checkLeases() error {
	meta := c.tx.buckets.meta
	if meta.Get(keyNext) == nil && meta.Get(keyFirst) == nil {
		// No id was leased, so there can be no lease.
		return c.each(c.tx.buckets.leases, func(k, _ []byte) {
			c.report("lease "+showDevice(k), "exists, but no device id was ever leased")
		})
	}
	var err error
	if c.first, err = decodeDevice(meta.Get(keyFirst)); err != nil {
		c.report("leases", "the first device id cannot be read: %v", err)
	}
	if c.next, err = decodeDevice(meta.Get(keyNext)); err != nil {
		c.report("leases", "the next device id cannot be read: %v", err)
	}
	end := c.first // the first id after the previous lease
	return c.each(c.tx.buckets.leases, func(k, v []byte) {
		subject := "lease " + showDevice(k)
		l, err := decodeLease(k, v)
		switch {
		case err != nil:
			c.report(subject, "%v", err)
		case l.Last < l.First || l.First < end || l.Last >= c.next || l.Last > MaxDevice:
			c.report(subject, "has devices %d to %d, but must be within %d to %d", l.First, l.Last, end, int64(c.next)-1)
		default:
			end = l.Last + 1
		}
	})
}

// checkOwners compares the owners in the records with the index, in both directions.
func (c *checker) checkOwners() error {
	for device, o := range c.owners {
		subject := fmt.Sprintf("device %d", device)
		if adopted := c.adopted && device < FirstInForeign; !adopted && (device < c.first || device >= c.next) {
			c.report(subject, "is owned by %s, but only ids from %d to %d were leased", o, c.first, int64(c.next)-1)
		}
		if indexed, ok := c.tx.Owner(device); !ok {
			c.reportDerived(subject, "is owned by %s, but not in the index", o)
		} else if indexed != o {
			c.reportDerived(subject, "is owned by %s, but the index says %s", o, indexed)
		}
	}
	return c.each(c.tx.buckets.devices, func(k, _ []byte) {
		device, err := decodeDevice(k)
		if err != nil {
			c.report("index of devices", "%v", err)
			return
		}
		if _, ok := c.owners[device]; !ok {
			o, _ := c.tx.Owner(device)
			c.report(fmt.Sprintf("device %d", device), "has no owner, but the index says %s", o)
		}
	})
}

func (c *checker) checkChildren() error {
	err := c.each(c.tx.buckets.children, func(k, _ []byte) {
		switch {
		case c.children[string(k)]:
		case c.incomplete:
			c.report("index of children", "has %x, which may belong to a snapshot that cannot be read, or whose parent "+
				"cannot be read", k)
		default:
			c.reportDerived("index of children", "has %x, which belongs to no snapshot", k)
			c.strayChildren = append(c.strayChildren, bytes.Clone(k))
		}
		delete(c.children, string(k))
	})
	for k := range c.children {
		c.reportDerived("index of children", "lacks %x", k)
	}
	return err
}
