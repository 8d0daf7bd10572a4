package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// compareContents compares the store with the pool's list of volumes.
func (c *comparison) compareContents(ctx context.Context) error {
	if c.Contents == nil {
		return nil
	}
	c.compareSuperblock(c.Contents.Superblock())
	present := make(map[uint32]bool)
	for d, err := range c.Contents.Devices(ctx) {
		if err != nil {
			return c.reportDamage(ctx, err)
		}
		if c.Records.Pool.Foreign() && d.ID < metadata.FirstInForeign && c.volumes[d.ID] == nil {
			continue // foreign, or a leftover that was kept during an adoption
		}
		present[d.ID] = true
		c.report.Examined.Volumes++
		switch v := c.volumes[d.ID]; {
		case v == nil:
			c.reportUnowned(d)
		case len(v.parents) > 0 && d.CreationTime == 0:
			c.timesReset = true
		}
	}
	for id, v := range c.volumes {
		if !present[id] && !v.trash {
			c.find(Finding{
				Kind: KindMissing, Subject: v.subject, DeviceID: id,
				Text: fmt.Sprintf("its volume %d is not in the pool: its data is lost; remove the snapshot", id),
			})
		}
	}
	if err := c.compareMappings(ctx, present); err != nil {
		return err
	}
	return c.compareUsed(ctx)
}

// compareUsed compares the number of used blocks with the blocks that volumes map. It does nothing
// if the pool has a metadata snapshot other than the check's own: that keeps the blocks of volumes
// deleted since.
func (c *comparison) compareUsed(ctx context.Context) error {
	if c.DataUsed == nil || c.Contents.Superblock().HeldRoot != 0 {
		return nil
	}
	mapped, err := c.Contents.MappedBlocks(ctx)
	if err != nil {
		return c.reportDamage(ctx, err)
	}
	f := Finding{Kind: KindBlocks, Subject: "pool"}
	blockBytes := uint64(c.Contents.Superblock().DataBlockSectors) * devmapper.SectorBytes
	remedy := "stop all users of the pool and the daemon, and run `thinsnap pool repair`"
	if c.Records.Pool.Foreign() {
		remedy = "the pool's owner can rebuild its metadata with thin_repair"
	}
	switch used := *c.DataUsed; {
	case used > mapped:
		f.Text = fmt.Sprintf("%d bytes of data count as used, but are part of no volume: they are from writes that failed, "+
			"or that a power failure interrupted; to free them: %s", (used-mapped)*blockBytes, remedy)
	case used < mapped:
		f.Kind = KindPool
		f.Text = fmt.Sprintf("%d bytes of data count as free, but are part of volumes, and new volumes may overwrite them: "+
			"%s", (mapped-used)*blockBytes, remedy)
	default:
		return nil
	}
	c.find(f)
	return nil
}

// reportDamage reports metadata that cannot be read completely. It reports it once.
func (c *comparison) reportDamage(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if c.unread {
		return nil
	}
	c.unread = true
	f := Finding{
		Kind: KindPool, Subject: "pool",
		Text: fmt.Sprintf("its metadata cannot be read: %v; stop all users of the pool and the daemon, and run "+
			"`thinsnap pool check`", err),
	}
	if errors.Is(err, pool.ErrMetadataShort) {
		f.Text = metadataShort
	}
	c.find(f)
	return nil
}

const metadataShort = "its metadata is nearly full, and a check could fill it: its volumes were not compared; " +
	"extend its metadata, and run the check again"

func (c *comparison) compareSuperblock(sb thinmeta.Superblock) {
	record := c.Records.Pool
	// A change is recorded in the store before it is stamped into the pool, and changes continue
	// during the check.
	latest := max(record.TransactionID, c.TransactionAfter)
	if !record.Foreign() && (sb.TransactionID+1 < record.TransactionID || sb.TransactionID > latest) {
		c.find(Finding{
			Kind: KindPool, Subject: "pool",
			Text: fmt.Sprintf("its transaction id is %d, but the store has %d: they are from different points in time",
				sb.TransactionID, latest),
		})
	}
	if uint64(sb.Time) >= thinmeta.MaxTime/10*9 {
		c.find(Finding{Kind: KindPool, Subject: "pool",
			Text: fmt.Sprintf("it has counted %d snapshots, those of all its users, and the kernel damages its volumes after "+
				"%d: stop all users of the pool and reset its times (docs/pools.md), or use another pool",
				sb.Time, thinmeta.MaxTime)})
	}
	if sb.NeedsCheck && c.Status == nil {
		c.find(Finding{Kind: KindPool, Subject: "pool",
			Text: "its metadata is marked needs_check: run `thinsnap pool repair`"})
	}
}

// reportUnowned reports a volume that no record owns.
func (c *comparison) reportUnowned(d thinmeta.Device) {
	f := Finding{Kind: KindUnowned, Subject: c.subject(d.ID), DeviceID: d.ID}
	switch {
	case c.Unrecorded[thin.ID(d.ID)]:
		return
	case c.Records.isKept(d.ID):
		f.Kind = KindKept
		f.Text = "the store does not know it, but it was written to: the store is older than the pool; restore a newer " +
			"copy of the store, or run `thinsnap leftovers`"
		if c.Records.Pool.Foreign() {
			f.Text = "it has an id of thinsnap's, but the store does not know it: the store is older than the pool, or " +
				"another user of the pool created the volume; see `thinsnap leftovers`"
		}
	case c.Records.leased(d.ID):
		f.Kind = KindLeftover
		f.Text = "left by an interrupted operation"
		if c.Running {
			f.Text = "belongs to a running operation, or was left by an interrupted one"
		}
		f.Repair = "delete it"
		c.await(f)
		return
	case d.ID >= c.Records.Next:
		f.Text = "in the pool, but thinsnap has never used its id: a foreign volume; it is left alone"
	default:
		f.Text = "in the pool, but no record owns it: its record may have been lost; it is left alone"
	}
	c.find(f)
}

// compareMappings compares each volume's mappings with its size and its parent. Children of one
// parent are compared one after the other.
func (c *comparison) compareMappings(ctx context.Context, present map[uint32]bool) error {
	var ids []uint32
	for id := range c.volumes {
		if present[id] {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b uint32) int {
		return cmp.Or(slices.Compare(c.volumes[a].parents, c.volumes[b].parents), cmp.Compare(a, b))
	})
	var parents []*parent
	for _, id := range ids {
		v := c.volumes[id]
		if !slices.EqualFunc(parents, v.parents, func(p *parent, id uint32) bool { return p.id == id }) {
			parents = nil
			for _, id := range v.parents {
				p, err := c.readParent(ctx, id, present[id])
				if err != nil {
					return c.reportDamage(ctx, err)
				}
				parents = append(parents, p)
			}
		}
		if err := c.compareVolume(ctx, id, v, parents); err != nil {
			return c.reportDamage(ctx, err)
		}
	}
	return nil
}

// keptMappings limits a parent's mappings in memory: 24 MiB, for 64 GiB in blocks of 64 KiB. A
// larger parent is read again for each child.
const keptMappings = 1 << 20

// parent is a volume with children. It no longer changes.
type parent struct {
	id uint32
	// mappings are all mappings, or nil if they are more than keptMappings.
	mappings []thinmeta.Mapping
	many     bool
	// last is the pool's time at the last write to the volume.
	last uint32
}

func (c *comparison) readParent(ctx context.Context, id uint32, present bool) (*parent, error) {
	p := &parent{id: id}
	if !present {
		return p, nil // already a finding
	}
	for m, err := range c.Contents.Mappings(ctx, id) {
		if err != nil {
			return nil, err
		}
		p.last = max(p.last, m.Time)
		if p.many = p.many || len(p.mappings) == keptMappings; p.many {
			p.mappings = nil
			continue
		}
		p.mappings = append(p.mappings, m)
	}
	return p, nil
}

// cursor iterates over the mappings of a parent.
type cursor struct {
	next func() (thinmeta.Mapping, error, bool)
	stop func()
	at   thinmeta.Mapping
	more bool
}

func (c *comparison) cursor(ctx context.Context, p *parent) (*cursor, error) {
	all := func(yield func(thinmeta.Mapping, error) bool) {
		for _, m := range p.mappings {
			if !yield(m, nil) {
				return
			}
		}
	}
	if p.many {
		all = c.Contents.Mappings(ctx, p.id)
	}
	next, stop := iter.Pull2(all)
	at := &cursor{next: next, stop: stop}
	return at, at.step()
}

func (c *cursor) step() (err error) {
	c.at, err, c.more = c.next()
	return err
}

// has returns true if the parent has the mapping. Calls must be in the order of virtual blocks.
func (c *cursor) has(m thinmeta.Mapping) (bool, error) {
	for c.more && c.at.Virtual < m.Virtual {
		if err := c.step(); err != nil {
			return false, err
		}
	}
	return c.more && c.at == m, nil
}

// compareVolume compares one volume. A block that is not newer than the parent's last write must be
// the parent's: each snapshot raises the pool's time, so a child's own blocks are newer. If the
// times were reset (docs/pools.md), the blocks from before the reset have the time 0.
func (c *comparison) compareVolume(ctx context.Context, id uint32, v *volume, parents []*parent) error {
	mismatches := make([]int, len(parents))
	cursors := make([]*cursor, len(parents))
	for i, p := range parents {
		at, err := c.cursor(ctx, p)
		defer at.stop()
		if err != nil {
			return err
		}
		cursors[i] = at
	}
	var highest uint64
	for m, err := range c.Contents.Mappings(ctx, id) {
		if err != nil {
			return err
		}
		c.report.Examined.Mappings++
		highest = m.Virtual + 1
		for i, p := range parents {
			has, err := cursors[i].has(m)
			if err != nil {
				return err
			}
			if m.Time <= p.last && !has && (m.Time > 0 || !c.timesReset) {
				mismatches[i]++
			}
		}
	}
	if len(parents) > 0 && !slices.Contains(mismatches, 0) {
		c.find(Finding{
			Kind: KindParent, Subject: v.subject, DeviceID: id,
			Text: fmt.Sprintf("its volume %d is not a snapshot of its parent's volume %d: %d of its blocks are too old to be "+
				"its own, and are not the parent's blocks",
				id, parents[0].id, slices.Min(mismatches)),
		})
	}
	blockBytes := uint64(c.Contents.Superblock().DataBlockSectors) * devmapper.SectorBytes
	if most := (v.bytes + blockBytes - 1) / blockBytes; highest > most {
		c.find(Finding{
			Kind: KindSize, Subject: v.subject, DeviceID: id,
			Text: fmt.Sprintf("its volume %d has data up to byte %d, but its size is %d", id, highest*blockBytes, v.bytes),
		})
	}
	return nil
}
