package check

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

const sectorBytes = 512

// compareContents holds the store against the pool's own list of volumes.
func (c *comparison) compareContents(ctx context.Context) error {
	if c.Contents == nil {
		return nil
	}
	c.compareSuperblock(c.Contents.Superblock())
	there := make(map[uint32]bool)
	for d, err := range c.Contents.Devices(ctx) {
		if err != nil {
			return c.damaged(ctx, err)
		}
		if c.Records.Pool.Foreign() && d.ID < metadata.FirstInExisting {
			continue // foreign
		}
		there[d.ID] = true
		c.report.Examined.Volumes++
		if c.volumes[d.ID] == nil {
			c.unowned(d)
		}
	}
	for id, v := range c.volumes {
		if !there[id] && !v.trash {
			c.find(Finding{
				Kind: KindMissing, Subject: v.subject, Device: id,
				Text: fmt.Sprintf("its volume %d is not in the pool: what was on it is lost; remove the snapshot", id),
			})
		}
	}
	return c.compareMappings(ctx, there)
}

// damaged is for metadata that cannot be read to the end.
func (c *comparison) damaged(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.find(Finding{
		Kind: KindPool, Subject: "pool",
		Text: fmt.Sprintf("its metadata cannot be read: %v; stop the daemon and what uses the pool, and run `thinsnap pool check`", err),
	})
	return nil
}

func (c *comparison) compareSuperblock(sb thinmeta.Superblock) {
	pool := c.Records.Pool
	// A lease is recorded first and stamped in the pool then.
	if !pool.Foreign() && sb.TransactionID != pool.TransactionID && sb.TransactionID+1 != pool.TransactionID {
		c.find(Finding{
			Kind: KindPool, Subject: "pool",
			Text: fmt.Sprintf("its transaction id is %d, but the store remembers %d: they are not of the same moment", sb.TransactionID, pool.TransactionID),
		})
	}
	if sb.NeedsCheck && c.Status == nil {
		c.find(Finding{Kind: KindPool, Subject: "pool", Text: "its metadata is marked as in need of a check: run `thinsnap pool repair`"})
	}
}

// unowned reports a volume that no record owns.
func (c *comparison) unowned(d thinmeta.Device) {
	f := Finding{Kind: KindUnowned, Subject: c.subject(d.ID), Device: d.ID}
	switch {
	case c.Spares[thin.ID(d.ID)]:
		return
	case c.Records.leased(d.ID):
		f.Kind = KindLeftover
		f.Text = "was left by an operation that was interrupted"
		if c.Running {
			f.Text = "belongs to an operation under way, or was left by one"
		}
		f.Repair = "delete it"
		c.await(f)
		return
	case d.ID >= c.Records.Next:
		f.Text = "is in the pool, but its id was never handed out: somebody else uses the pool; it is left alone"
	default:
		f.Text = "is in the pool, but nothing owns it; it may hold what a lost record stood for, and is left alone"
	}
	c.find(f)
}

// compareMappings holds what each volume maps against its size and its parent, children of one parent together.
func (c *comparison) compareMappings(ctx context.Context, there map[uint32]bool) error {
	var ids []uint32
	for id := range c.volumes {
		if there[id] {
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
				p, err := c.readParent(ctx, id, there[id])
				if err != nil {
					return c.damaged(ctx, err)
				}
				parents = append(parents, p)
			}
		}
		if err := c.compareVolume(ctx, id, v, parents); err != nil {
			return c.damaged(ctx, err)
		}
	}
	return nil
}

// parent is what a volume maps that others were made from, and that has not changed since.
type parent struct {
	id       uint32
	mappings []thinmeta.Mapping
	// last is the pool's time when it was last written to.
	last uint32
}

func (c *comparison) readParent(ctx context.Context, id uint32, there bool) (*parent, error) {
	p := &parent{id: id}
	if !there {
		return p, nil // which is a finding already
	}
	for m, err := range c.Contents.Mappings(ctx, id) {
		if err != nil {
			return nil, err
		}
		p.mappings = append(p.mappings, m)
		p.last = max(p.last, m.Time)
	}
	return p, nil
}

// compareVolume reads what a volume maps. Blocks that are as old as its parent's last, or older, it can only have from
// the parent: the pool's time goes up with every snapshot that is made, and so at the latest when the child was.
func (c *comparison) compareVolume(ctx context.Context, id uint32, v *volume, parents []*parent) error {
	strangers := make([]int, len(parents))
	at := make([]int, len(parents))
	var highest uint64
	for m, err := range c.Contents.Mappings(ctx, id) {
		if err != nil {
			return err
		}
		c.report.Examined.Mappings++
		highest = m.Virtual + 1
		for i, p := range parents {
			for at[i] < len(p.mappings) && p.mappings[at[i]].Virtual < m.Virtual {
				at[i]++
			}
			if m.Time <= p.last && (at[i] == len(p.mappings) || p.mappings[at[i]] != m) {
				strangers[i]++
			}
		}
	}
	if len(parents) > 0 && !slices.Contains(strangers, 0) {
		c.find(Finding{
			Kind: KindParent, Subject: v.subject, Device: id,
			Text: fmt.Sprintf("its volume %d is no snapshot of volume %d, which is its parent's: %d blocks are older than that, and not from there",
				id, parents[0].id, slices.Min(strangers)),
		})
	}
	blockBytes := uint64(c.Contents.Superblock().DataBlockSectors) * sectorBytes
	if most := (v.bytes + blockBytes - 1) / blockBytes; highest > most {
		c.find(Finding{
			Kind: KindSize, Subject: v.subject, Device: id,
			Text: fmt.Sprintf("its volume %d has data up to byte %d, but its size is %d", id, highest*blockBytes, v.bytes),
		})
	}
	return nil
}
