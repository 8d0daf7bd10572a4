package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

// detailsBytes is the size of a struct disk_device_details.
const detailsBytes = 24

// Device is a volume of the pool. Times are those of [Superblock.Time].
type Device struct {
	ID            uint32
	MappedBlocks  uint64 // of the pool's block size
	TransactionID uint64 // the pool's, when the volume was made
	// CreationTime is the time when the volume was made. For a snapshot it is
	// no other snapshot's: the time is raised before it is made.
	CreationTime uint32
	// SnapshottedTime is the CreationTime of the last snapshot that was made of
	// the volume, or its own if there was none.
	SnapshottedTime uint32
}

// Devices yields the pool's volumes in the order of their ids. An error is the
// last that it yields.
func (m *Metadata) Devices(ctx context.Context) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		for e, err := range m.details().entries(ctx, 0, math.MaxUint64) {
			var d Device
			if err == nil {
				d, err = decodeDevice(e)
			}
			if err != nil {
				yield(Device{}, fmt.Errorf("volumes in the metadata: %w", err))
				return
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// Whole tells for each id from first to last of which there is a volume whether
// its tree of mappings is there, too.
//
// Linux (6.1 for one) can leave a volume without one, when a change that it takes back
// because a write failed and the next change overlap. Nothing is lost with it, but to delete
// that volume makes the kernel count the uses of its metadata's blocks wrongly from then on
// (__delete_device of drivers/md/dm-thin-metadata.c).
func (m *Metadata) Whole(ctx context.Context, first, last uint32) (map[uint32]bool, error) {
	whole := make(map[uint32]bool)
	for e, err := range m.details().entries(ctx, uint64(first), uint64(last)) {
		if err != nil {
			return nil, fmt.Errorf("volumes in the metadata: %w", err)
		}
		whole[uint32(e.key)] = false
	}
	for e, err := range m.volumes().entries(ctx, uint64(first), uint64(last)) {
		if err != nil {
			return nil, fmt.Errorf("trees of mappings in the metadata: %w", err)
		}
		if _, ok := whole[uint32(e.key)]; ok {
			whole[uint32(e.key)] = true
		}
	}
	return whole, nil
}

// device finds a volume, and the tree of its mappings.
func (m *Metadata) device(ctx context.Context, id uint32) (Device, tree, error) {
	details, err := m.details().get(ctx, uint64(id))
	if err != nil {
		return Device{}, tree{}, err
	}
	root, err := m.volumes().get(ctx, uint64(id))
	if err != nil {
		return Device{}, tree{}, err
	}
	switch {
	case details.value == nil && root.value == nil:
		return Device{}, tree{}, ErrNoDevice
	case details.value == nil:
		return Device{}, tree{}, fmt.Errorf("block %d: %w: mappings of a volume that there is not", root.block, ErrDamaged)
	case root.value == nil:
		return Device{}, tree{}, fmt.Errorf("block %d: %w: a volume without a tree of mappings", details.block, ErrDamaged)
	}
	d, err := decodeDevice(details)
	if err != nil {
		return Device{}, tree{}, err
	}
	return d, tree{r: m.r, root: binary.LittleEndian.Uint64(root.value), valueBytes: blockTimeBytes}, nil
}

func decodeDevice(e entry) (Device, error) {
	if e.key > math.MaxUint32 {
		return Device{}, fmt.Errorf("block %d: %w: a volume with id %d", e.block, ErrDamaged, e.key)
	}
	return Device{
		ID:              uint32(e.key),
		MappedBlocks:    binary.LittleEndian.Uint64(e.value),
		TransactionID:   binary.LittleEndian.Uint64(e.value[8:]),
		CreationTime:    binary.LittleEndian.Uint32(e.value[16:]),
		SnapshottedTime: binary.LittleEndian.Uint32(e.value[20:]),
	}, nil
}
