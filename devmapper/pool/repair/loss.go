package repair

import (
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
		digest := crc64.New(crc64.MakeTable(crc64.ECMA))
		for mapping, err := range m.Mappings(ctx, d.ID) {
			if err != nil {
				v.whole = false
				break
			}
			v.mapped++
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

// losses returns what after lacks of before, in the order of the volumes. Without a tree of mappings a volume had nothing.
func losses(before, after contents, treeless map[uint32]bool) []Loss {
	var all []Loss
	for id, was := range before.volumes {
		is, there := after.volumes[id]
		switch {
		case treeless[id]:
		case !there:
			all = append(all, Loss{Volume: id, Had: was.blocks, Gone: true})
		case !was.whole || was.digest != is.digest:
			all = append(all, Loss{Volume: id, Had: was.blocks, Has: is.mapped})
		}
	}
	slices.SortFunc(all, func(a, b Loss) int { return int(a.Volume) - int(b.Volume) })
	return all
}
