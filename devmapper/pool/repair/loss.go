package repair

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/crc64"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Loss is a volume that is not after a repair as it was before.
type Loss struct {
	Volume uint32
	// Had is how many blocks the volume had, and Has how many it has now, of the pool's block size. If they are the same,
	// some of them are older ones.
	Had, Has uint64
	// Gone says that there is no such volume any more.
	Gone bool
}

// contents is what metadata maps, as far as it can be read.
type contents struct {
	volumes map[uint32]volume
	// all says that there are no more volumes.
	all bool
	// time is the latest of which anything is.
	time uint32
}

type volume struct {
	blocks uint64 // by the list of volumes
	mapped uint64 // by its own tree
	// digest is that of its mappings, which could be read to the end if it is whole.
	digest uint64
	whole  bool
}

// read reads what metadata maps. The error is the context's.
func read(ctx context.Context, m *thinmeta.Metadata) (contents, error) {
	c := contents{volumes: make(map[uint32]volume), all: true}
	for d, err := range m.Devices(ctx) {
		if err != nil {
			c.all = false
			break
		}
		v := volume{blocks: d.MappedBlocks, whole: true}
		c.time = max(c.time, d.CreationTime, d.SnapshottedTime)
		digest := crc64.New(crc64.MakeTable(crc64.ECMA))
		for mapping, err := range m.Mappings(ctx, d.ID) {
			if err != nil {
				v.whole = false
				break
			}
			v.mapped++
			c.time = max(c.time, mapping.Time)
			var b [20]byte
			binary.LittleEndian.PutUint64(b[:], mapping.Virtual)
			binary.LittleEndian.PutUint64(b[8:], mapping.Data)
			binary.LittleEndian.PutUint32(b[16:], mapping.Time)
			_, _ = digest.Write(b[:])
		}
		v.digest = digest.Sum64()
		c.volumes[d.ID] = v
	}
	return c, ctx.Err()
}

// losses returns what after lacks of before, in the order of the volumes, and whether that is all. Without a tree of
// mappings a volume had nothing. A superblock that is not sealed may have led to the wrong trees.
func losses(before, after contents, treeless map[uint32]bool, sealed bool) (lost []Loss, all bool) {
	all = before.all
	for id, was := range before.volumes {
		is, there := after.volumes[id]
		switch {
		case treeless[id]:
		case !there:
			lost = append(lost, Loss{Volume: id, Had: was.blocks, Gone: true})
		case !sealed && !was.whole && was.blocks == is.mapped:
			all = false
		case !was.whole || was.digest != is.digest:
			lost = append(lost, Loss{Volume: id, Had: was.blocks, Has: is.mapped})
		}
	}
	slices.SortFunc(lost, func(a, b Loss) int { return cmp.Compare(a.Volume, b.Volume) })
	return lost, all
}
