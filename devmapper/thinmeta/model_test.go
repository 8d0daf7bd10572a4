package thinmeta_test

import (
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// model is a pool with times as in dm-thin-metadata.c.
type model struct {
	time    uint32
	next    uint64 // block of the pool
	volumes map[uint32]*volume
}

type volume struct {
	thinmeta.Device
	mapped map[uint64]thinmeta.Mapping
	edits  int // writes to new blocks, and discards
	parent uint32
	// the parent's edits at the creation of this volume
	parentEdits int
}

func newModel() *model { return &model{volumes: map[uint32]*volume{}} }

func (m *model) create(id uint32) {
	d := thinmeta.Device{ID: id, CreationTime: m.time, SnapshottedTime: m.time}
	m.volumes[id] = &volume{Device: d, mapped: map[uint64]thinmeta.Mapping{}}
}

func (m *model) snapshot(id, origin uint32) {
	m.time++
	o := m.volumes[origin]
	o.SnapshottedTime = m.time
	m.create(id)
	v := m.volumes[id]
	v.mapped, v.MappedBlocks, v.parent, v.parentEdits = maps.Clone(o.mapped), o.MappedBlocks, origin, o.edits
}

func (m *model) write(id uint32, virtual uint64) {
	v := m.volumes[id]
	if p, mapped := v.mapped[virtual]; mapped && p.Time >= v.SnapshottedTime {
		return // written in place
	}
	v.mapped[virtual] = thinmeta.Mapping{Virtual: virtual, Data: m.next, Time: m.time}
	m.next++
	v.MappedBlocks = uint64(len(v.mapped))
	v.edits++
}

func (m *model) discard(id uint32, virtual uint64) {
	v := m.volumes[id]
	if _, mapped := v.mapped[virtual]; mapped {
		delete(v.mapped, virtual)
		v.MappedBlocks--
		v.edits++
	}
}

func (m *model) contents() contents {
	c := contents{mappings: map[uint32][]thinmeta.Mapping{}}
	for _, id := range slices.Sorted(maps.Keys(m.volumes)) {
		v := m.volumes[id]
		c.devices = append(c.devices, v.Device)
		for _, virtual := range slices.Sorted(maps.Keys(v.mapped)) {
			c.mappings[id] = append(c.mappings[id], v.mapped[virtual])
		}
	}
	return c
}

// randomPool changes a pool at random. It has few volumes with many mappings, or many with few,
// with scattered ids and blocks.
func randomPool(r *rand.Rand, volumes, span int) *model {
	m := newModel()
	id := uint32(0)
	var ids []uint32
	for range volumes {
		id += 1 + uint32(r.IntN(20))
		if len(ids) == 0 || r.IntN(4) == 0 {
			m.create(id)
		} else {
			m.snapshot(id, ids[r.IntN(len(ids))])
		}
		ids = append(ids, id)
		for range 1 + r.IntN(3) {
			m.scribble(r, ids[r.IntN(len(ids))], span)
		}
	}
	return m
}

// scribble writes or discards a run of blocks, or scattered ones.
func (m *model) scribble(r *rand.Rand, id uint32, span int) {
	change := m.write
	if r.IntN(4) == 0 {
		change = m.discard
	}
	start, length := r.IntN(span), r.IntN(span/4+1)
	stride := 1 + r.IntN(3)
	for i := range length {
		change(id, uint64(start+i*stride))
	}
}
