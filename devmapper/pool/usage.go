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

// Usage is the size of a volume's mappings, in bytes.
type Usage struct {
	Mapped uint64 // including blocks shared with other volumes
	// Own is the part of Mapped that is not mapped to the same blocks of the pool as in the origin.
	Own uint64
}

// Usage returns the usage of a volume relative to its origin. With the origin 0, for none, Own is
// Mapped. The origin must not be written to meanwhile; the volume may be. It returns
// thin.ErrNoDevice unless the pool has both.
//
// It reads the pool's last commit. If the pool commits during each try, Usage takes a metadata
// snapshot, for which the pool commits once more. The result may be as old as age; 0 means now. With
// an age, all volumes that are queried within it share one ioctl and few reads. Only a volume that
// was written to since its last query takes more reads, in proportion to its changes.
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

// usageNow is usageOf for the age 0: it reads each metadata block once.
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

// changed returns the number of blocks that a volume maps, but not to the same block of the pool as
// its origin. It also returns the volume's state at the last read; steady is false if an earlier
// read found another state.
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

// lazyMetadata opens the pool's metadata at the first read.
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

// volumeState identifies the mappings of a volume, until the kernel reuses metadata blocks.
type volumeState struct{ root, blocks uint64 }

func stateOf(v thinmeta.Volume) volumeState {
	return volumeState{root: v.Tree.Root(), blocks: v.MappedBlocks}
}

// stateOf returns the state of a volume at the last commit, or one at most age old.
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

// usageKept limits the age of a cached count of changed blocks. A written volume can get the root
// of an earlier state, because the kernel reuses metadata blocks. This is rare and brief, because
// the kernel first goes through all free blocks.
const usageKept = 5 * time.Minute

// usages caches the states of volumes and their changed blocks, in some 200 bytes a volume.
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
