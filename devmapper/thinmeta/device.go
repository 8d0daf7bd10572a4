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
	TransactionID uint64 // the pool's, at the creation of the volume
	// CreationTime is the time of the volume's creation. It differs between snapshots, because each
	// snapshot first increments the time.
	CreationTime uint32
	// SnapshottedTime is the CreationTime of the volume's last snapshot, or the volume's own
	// without a snapshot.
	SnapshottedTime uint32
}

// Devices yields the pool's volumes in the order of their ids. An error ends the sequence.
func (m *Metadata) Devices(ctx context.Context) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		for e, err := range m.details().entries(ctx, 0, math.MaxUint64) {
			var d Device
			if err == nil {
				d, err = decodeDevice(e)
			}
			if err != nil {
				yield(Device{}, fmt.Errorf("read the volumes in the metadata: %w", err))
				return
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// Whole returns the ids from first to last that have a volume, and whether the volume has a mapping
// tree.
//
// Linux (for example 6.1) can leave a volume without a tree, if the rollback of a change after a
// failed write overlaps with the next change. The volume has no data. Its deletion would make the
// kernel's reference counts of metadata blocks wrong from then on (__delete_device in
// drivers/md/dm-thin-metadata.c).
func (m *Metadata) Whole(ctx context.Context, first, last uint32) (map[uint32]bool, error) {
	hasTree := make(map[uint32]bool)
	for e, err := range m.details().entries(ctx, uint64(first), uint64(last)) {
		if err != nil {
			return nil, fmt.Errorf("read the volumes in the metadata: %w", err)
		}
		hasTree[uint32(e.key)] = false
	}
	for e, err := range m.mappingTrees().entries(ctx, uint64(first), uint64(last)) {
		if err != nil {
			return nil, fmt.Errorf("read the mapping trees in the metadata: %w", err)
		}
		if _, ok := hasTree[uint32(e.key)]; ok {
			hasTree[uint32(e.key)] = true
		}
	}
	return hasTree, nil
}

// Twins returns the other volumes with the same mapping tree as a volume: its snapshots, its
// origin and the origin's other snapshots, as long as no block has changed. A volume that was not
// created as a snapshot has a tree of its own. It returns [ErrNoDevice] if there is no such volume.
func (m *Metadata) Twins(ctx context.Context, id uint32) ([]uint32, error) {
	_, t, err := m.device(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("volume %d: %w", id, err)
	}
	var twins []uint32
	for e, err := range m.mappingTrees().entries(ctx, 0, math.MaxUint32) {
		if err != nil {
			return nil, fmt.Errorf("read the mapping trees in the metadata: %w", err)
		}
		if binary.LittleEndian.Uint64(e.value) == t.root && uint32(e.key) != id {
			twins = append(twins, uint32(e.key))
		}
	}
	return twins, nil
}

func (m *Metadata) device(ctx context.Context, id uint32) (Device, tree, error) {
	details, err := m.details().get(ctx, uint64(id))
	if err != nil {
		return Device{}, tree{}, err
	}
	root, err := m.mappingTrees().get(ctx, uint64(id))
	if err != nil {
		return Device{}, tree{}, err
	}
	switch {
	case details.value == nil && root.value == nil:
		return Device{}, tree{}, ErrNoDevice
	case details.value == nil:
		return Device{}, tree{}, fmt.Errorf("block %d: %w: mappings of a nonexistent volume", root.block, ErrDamaged)
	case root.value == nil:
		return Device{}, tree{}, fmt.Errorf("block %d: %w: a volume without a mapping tree", details.block, ErrDamaged)
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

// Volume is the mappings of a volume.
type Volume struct {
	Tree         Tree
	MappedBlocks uint64 // of the pool's block size
}

// Near returns the volumes that are recorded in the same blocks as a volume: about a hundred with
// ids close to its own. It reads the same blocks as for the volume alone. The result lacks the
// volume if it does not exist.
func (m *Metadata) Near(ctx context.Context, id uint32) (map[uint32]Volume, error) {
	details, err := m.details().leaf(ctx, uint64(id))
	if err != nil {
		return nil, fmt.Errorf("read the volumes in the metadata: %w", err)
	}
	roots, err := m.mappingTrees().leaf(ctx, uint64(id))
	if err != nil {
		return nil, fmt.Errorf("read the mapping trees in the metadata: %w", err)
	}
	near := make(map[uint32]Volume)
	for key, value := range details {
		if root, ok := roots[key]; ok && key <= math.MaxUint32 {
			tree := Tree{r: m.r, root: binary.LittleEndian.Uint64(root)}
			near[uint32(key)] = Volume{Tree: tree, MappedBlocks: binary.LittleEndian.Uint64(value)}
		}
	}
	return near, nil
}
