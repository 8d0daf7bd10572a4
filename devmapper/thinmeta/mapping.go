package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

const (
	blockTimeBytes = 8
	timeBits       = 24 // of a block time (pack_block_time)
)

// Mapping maps a block of a volume to a block of the pool.
type Mapping struct {
	Virtual uint64 // block of the volume
	Data    uint64 // block of the pool
	// Time is [Superblock.Time] when the block was mapped. It has 24 bits.
	Time uint32
}

// Mappings yields the blocks that a volume has mapped, in the order of Virtual.
// An error is the last that it yields; [ErrNoDevice] if there is no such volume.
func (m *Metadata) Mappings(ctx context.Context, id uint32) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		_, t, err := m.device(ctx, id)
		if err != nil {
			yield(Mapping{}, fmt.Errorf("volume %d: %w", id, err))
			return
		}
		for p, err := range mappings(ctx, t) {
			if err != nil {
				yield(Mapping{}, fmt.Errorf("mappings of volume %d: %w", id, err))
				return
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}

func mappings(ctx context.Context, t tree) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		for e, err := range t.entries(ctx, 0, math.MaxUint64) {
			if err != nil {
				yield(Mapping{}, err)
				return
			}
			v := binary.LittleEndian.Uint64(e.value)
			if !yield(Mapping{Virtual: e.key, Data: v >> timeBits, Time: uint32(v & (1<<timeBits - 1))}, nil) {
				return
			}
		}
	}
}
