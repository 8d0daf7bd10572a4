package fakepool

import (
	"context"
	"slices"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// Usage returns the mapped bytes, and how many of them the origin does not map to the same blocks.
func (p *Pool) Usage(ctx context.Context, id, origin thin.ID, _ time.Duration) (pool.Usage, error) {
	unlock, err := p.enter(ctx, "Usage", id)
	if err != nil {
		return pool.Usage{}, err
	}
	defer unlock()
	v, from := p.volumes[id], p.volumes[origin]
	if v == nil || from == nil && origin != 0 {
		return pool.Usage{}, thin.ErrNoDevice
	}
	own := v.mapped()
	if from != nil {
		own -= common(v, from)
	}
	return pool.Usage{Mapped: v.mapped() * p.status.BlockBytes, Own: own * p.status.BlockBytes}, nil
}

// Exclusive returns the bytes that no other volume maps, except for volumes in besides with the same
// mappings.
func (p *Pool) Exclusive(ctx context.Context, id thin.ID, besides ...thin.ID) (uint64, error) {
	unlock, err := p.enter(ctx, "Exclusive", id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	v := p.volumes[id]
	if v == nil {
		return 0, thin.ErrNoDevice
	}
	shared := uint64(0)
	for other, o := range p.volumes {
		if other != id && (o.tree != v.tree || !slices.Contains(besides, other)) {
			shared = max(shared, common(v, o))
		}
	}
	return (v.mapped() - shared) * p.status.BlockBytes, nil
}

// common returns the number of blocks that two volumes share: one for each common origin, and one
// for each byte of their common beginning.
func common(a, b *volume) (n uint64) {
	for i := 0; i < min(len(a.origins), len(b.origins)) && a.origins[i] == b.origins[i]; i++ {
		n++
	}
	for i := 0; i < min(len(a.content), len(b.content)) && a.content[i] == b.content[i]; i++ {
		n++
	}
	return n
}
