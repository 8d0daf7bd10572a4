package fakepool

import (
	"context"
	"fmt"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// discardPiece is the number of bytes that Discard discards in one turn.
const discardPiece = 128 << 20

// Discard empties a volume in pieces, and calls the Fault for each. It panics if the volume is in
// use.
func (p *Pool) Discard(ctx context.Context, id thin.ID, turn blockdev.Turn) error {
	if err := p.onDevice(ctx, "OpenToDiscard", id, func(d *device) { d.openers++; d.discards++ }); err != nil {
		return err
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.active[id].openers--
		p.active[id].discards--
	}()
	for left := p.bytesOf(id); ; left -= discardPiece {
		if err := p.discardPiece(ctx, id, turn); err != nil || left <= discardPiece {
			return err
		}
	}
}

func (p *Pool) discardPiece(ctx context.Context, id thin.ID, turn blockdev.Turn) error {
	leave, err := turn(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return p.onDevice(ctx, "Discard", id, func(d *device) {
		if d.openers > 1 || d.readOnly {
			panic(fmt.Sprintf("volume %d is discarded while it is in use", id))
		}
		v := p.volumes[id]
		v.content, v.written, v.tree, d.unflushed = "", 0, p.newTree(), nil
	})
}

func (p *Pool) bytesOf(id thin.ID) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.volumes[id]; v != nil {
		return v.bytes
	}
	return 0
}
