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

// MaxTime is the last [Superblock.Time] at which a pool is safe. The kernel puts the time into the
// low 24 bits of a mapping without a mask (pack_block_time in drivers/md/dm-thin-metadata.c). A
// larger time changes the number of the data block, and two volumes get the same block.
const MaxTime = 1<<timeBits - 1

// Mapping maps a block of a volume to a block of the pool.
type Mapping struct {
	Virtual uint64 // block of the volume
	Data    uint64 // block of the pool
	// Time is the 24-bit [Superblock.Time] at which the block was mapped.
	Time uint32
}

// Mappings yields the mapped blocks of a volume, in the order of Virtual. An error ends the
// sequence; it is [ErrNoDevice] if there is no such volume.
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
			if !yield(mappingOf(e.key, binary.LittleEndian.Uint64(e.value)), nil) {
				return
			}
		}
	}
}

// mappingOf decodes a block time.
func mappingOf(virtual, blockTime uint64) Mapping {
	return Mapping{Virtual: virtual, Data: blockTime >> timeBits, Time: uint32(blockTime & (1<<timeBits - 1))}
}

// Writes describes the writes to a volume.
type Writes struct {
	// SinceCreation is true if a block was written since the volume was created. Otherwise the
	// volume has the blocks of its origin, or none.
	SinceCreation bool
	// SinceSnapshot is true if a block was written since the volume's last snapshot, or without a
	// snapshot since its creation.
	SinceSnapshot bool
	// Snapshotted is true if the volume ever had a snapshot, even if that is deleted.
	Snapshotted bool
	// Undated is true if the volume was created at the pool's time 0. A snapshot has that time only
	// if the pool's times were reset (docs/pools.md). SinceSnapshot can then be false despite a
	// write.
	Undated bool
	// Mapped is the number of blocks that the volume maps, and End the first block after them.
	Mapped, End uint64
}

// Writes returns the writes to a volume, or [ErrNoDevice] if there is no such volume.
//
// Each snapshot increments the pool's time, which is part of each mapping. A block that is older
// than the last snapshot is shared, and a write to a shared block maps another one
// (__snapshotted_since in drivers/md/dm-thin-metadata.c, process_shared_bio in dm-thin.c). So a
// block was written since then exactly if its mapping has that time or a later one. Beyond
// [MaxTime], all blocks count as written.
func (m *Metadata) Writes(ctx context.Context, id uint32) (Writes, error) {
	d, t, err := m.device(ctx, id)
	if err != nil {
		return Writes{}, fmt.Errorf("volume %d: %w", id, err)
	}
	w := Writes{Snapshotted: d.SnapshottedTime != d.CreationTime, Undated: d.CreationTime == 0}
	beyond := max(d.CreationTime, d.SnapshottedTime) > MaxTime
	for b, err := range mappings(ctx, t) {
		if err != nil {
			return Writes{}, fmt.Errorf("mappings of volume %d: %w", id, err)
		}
		w.SinceCreation = w.SinceCreation || beyond || b.Time >= d.CreationTime
		w.SinceSnapshot = w.SinceSnapshot || beyond || b.Time >= d.SnapshottedTime
		w.Mapped++
		w.End = b.Virtual + 1
	}
	return w, nil
}
