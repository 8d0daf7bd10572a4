package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Usage is what a volume maps, in bytes.
type Usage struct {
	Mapped uint64 // shared with other volumes or not
	// Own is the part of Mapped that its origin does not map to the same blocks of the pool.
	Own uint64
}

// Usage returns what a volume maps, and how much of that an origin does not map to the same blocks; all
// of it for the origin 0. The origin is not written to; the volume may be. It is thin.ErrNoDevice if the
// pool does not have both.
//
// It tells what the pool has committed, which may be as old as age besides, and makes no commit unless
// the pool commits all the time. With an age it takes less: one ioctl and few reads for all volumes
// that are asked for within it, and more reads only for those that were written to since the last
// time, in proportion to what they changed. An age of 0 means now.
func (p *Pool) Usage(ctx context.Context, id, origin thin.ID, age time.Duration) (Usage, error) {
	usage, err := p.usageOf(ctx, id, origin, age)
	if errors.Is(err, thinmeta.ErrNoDevice) {
		err = fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	}
	return usage, err
}

func (p *Pool) usageOf(ctx context.Context, id, origin thin.ID, age time.Duration) (Usage, error) {
	dev := &lazyMetadata{pool: p}
	defer dev.close()
	if age == 0 && origin != 0 {
		return p.usageNow(ctx, dev, id, origin)
	}
	volume, err := p.stateOf(ctx, dev, id, age)
	if err != nil {
		return Usage{}, err
	}
	if origin == 0 {
		return p.usage(volume, volume.blocks), nil
	}
	from, err := p.stateOf(ctx, dev, origin, age)
	if err != nil {
		return Usage{}, err
	}
	if volume.root == from.root {
		return p.usage(volume, 0), nil
	}
	if own, known := p.usages.known(id, volume, from); known {
		return p.usage(volume, own), nil
	}
	own, volume, steady, err := p.changed(ctx, dev, id, origin)
	if err != nil {
		return Usage{}, err
	}
	if steady {
		p.usages.note(id, volume, from, own)
	}
	return p.usage(volume, own), nil
}

// usageNow is usageOf for the age 0: it reads each block of metadata once.
func (p *Pool) usageNow(ctx context.Context, dev io.ReaderAt, id, origin thin.ID) (Usage, error) {
	own, volume, _, err := p.changed(ctx, dev, id, origin)
	if err != nil {
		return Usage{}, err
	}
	return p.usage(volume, own), nil
}

func (p *Pool) usage(volume volumeState, own uint64) Usage {
	return Usage{Mapped: volume.blocks * p.blockBytes, Own: min(own, volume.blocks) * p.blockBytes}
}

// changed returns how many blocks a volume maps that its origin does not map to the same block, and
// what the volume was at the end; not steady if it was something else before.
func (p *Pool) changed(
	ctx context.Context, dev io.ReaderAt, id, origin thin.ID,
) (blocks uint64, volume volumeState, steady bool, err error) {
	part := func(metadata *thinmeta.Metadata, first uint64, nodes int) (count, next uint64, more bool, err error) {
		near, err := metadata.Near(ctx, uint32(id))
		if err != nil {
			return 0, 0, false, err
		}
		v, ok := near[uint32(id)]
		if !ok {
			return 0, 0, false, fmt.Errorf("volume %d: %w", id, thinmeta.ErrNoDevice)
		}
		from, err := metadata.Tree(ctx, uint32(origin))
		if err != nil {
			return 0, 0, false, err
		}
		before := volume
		volume = stateOf(v)
		steady = first == 0 || steady && before == volume
		return thinmeta.Changed(ctx, from, v.Tree, first, nodes)
	}
	blocks, err = p.readPieces(ctx, dev, part)
	if errors.Is(err, errCommits) {
		err = p.readSnapshot(ctx, dev, func(metadata *thinmeta.Metadata) (err error) {
			blocks, _, _, err = part(metadata, 0, 0)
			return err
		})
	}
	return blocks, volume, steady, err
}

// lazyMetadata opens the pool's metadata when it is read.
type lazyMetadata struct {
	pool *Pool
	dev  *blockdev.Direct
}

func (m *lazyMetadata) ReadAt(b []byte, offset int64) (_ int, err error) {
	if m.dev == nil {
		if m.dev, err = m.pool.openMetadata(); err != nil {
			m.dev = nil
			return 0, err
		}
	}
	return m.dev.ReadAt(b, offset)
}

func (m *lazyMetadata) close() {
	if m.dev != nil {
		_ = m.dev.Close()
	}
}

// volumeState identifies what a volume maps, until the kernel uses blocks of metadata again.
type volumeState struct{ root, blocks uint64 }

func stateOf(v thinmeta.Volume) volumeState {
	return volumeState{root: v.Tree.Root(), blocks: v.MappedBlocks}
}

// stateOf returns what a volume was at a commit, of which none is older than age but the last.
func (p *Pool) stateOf(ctx context.Context, dev io.ReaderAt, id thin.ID, age time.Duration) (volumeState, error) {
	if v, ok := p.usages.recent(id, age); ok {
		return v, nil
	}
	var at time.Time
	var near map[thin.ID]volumeState
	err := p.readCommittedOn(ctx, dev, func(metadata *thinmeta.Metadata) error {
		at, near = time.Now(), make(map[thin.ID]volumeState)
		volumes, err := metadata.Near(ctx, uint32(id))
		for id, v := range volumes {
			near[thin.ID(id)] = stateOf(v)
		}
		return err
	})
	if err != nil {
		return volumeState{}, err
	}
	p.usages.add(near, at)
	v, ok := near[id]
	if !ok {
		return volumeState{}, fmt.Errorf("volume %d: %w", id, thinmeta.ErrNoDevice)
	}
	return v, nil
}

// usageKept is how long a number of changed blocks is believed of a volume that looks as it did. The
// kernel uses blocks of metadata again, but goes through all free ones first: a volume that was written
// to hardly ever looks as before, and never for long.
const usageKept = 5 * time.Minute

// usages remember what volumes changed. They are small: a volume takes some 200 bytes.
type usages struct {
	mu sync.Mutex
	// at is when the oldest of states was read.
	at     time.Time
	states map[thin.ID]volumeState
	own    map[thin.ID]ownBlocks
	swept  time.Time
}

type ownBlocks struct {
	volume, origin volumeState
	blocks         uint64
	at             time.Time
}

func (u *usages) recent(id thin.ID, age time.Duration) (volumeState, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if age == 0 || time.Since(u.at) > age {
		u.states = nil
	}
	v, ok := u.states[id]
	return v, ok
}

func (u *usages) add(states map[thin.ID]volumeState, at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.states) == 0 {
		u.states, u.at = make(map[thin.ID]volumeState), at
	}
	maps.Copy(u.states, states)
}

func (u *usages) known(id thin.ID, volume, origin volumeState) (blocks uint64, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o, ok := u.own[id]
	return o.blocks, ok && o.volume == volume && o.origin == origin && time.Since(o.at) < usageKept
}

func (u *usages) note(id thin.ID, volume, origin volumeState, blocks uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if u.own == nil {
		u.own, u.swept = make(map[thin.ID]ownBlocks), now
	}
	if now.Sub(u.swept) > usageKept {
		u.swept = now
		for id, o := range u.own {
			if now.Sub(o.at) > usageKept {
				delete(u.own, id)
			}
		}
	}
	u.own[id] = ownBlocks{volume: volume, origin: origin, blocks: blocks, at: now}
}
