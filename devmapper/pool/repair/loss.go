package repair

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/crc64"
	"slices"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// Loss is a volume that a repair has changed.
type Loss struct {
	Volume uint32
	// Had and Has are its number of blocks before and after the repair, of the pool's block size.
	// If they are equal, some blocks may have older content.
	Had, Has uint64
	// Gone is true if the volume no longer exists.
	Gone bool
}

// contents are the readable volumes and mappings of a pool's metadata.
type contents struct {
	volumes map[uint32]volume
	// all is true if the list of volumes is complete.
	all bool
	// time is the latest time of a volume or a mapping.
	time uint32
}

type volume struct {
	blocks uint64 // in the list of volumes
	mapped uint64 // in its tree
	// digest is the checksum of its mappings. complete is true if all of them could be read.
	digest   uint64
	complete bool
}

// read reads the contents of metadata. Its only error is ctx.Err().
func read(ctx context.Context, m *thinmeta.Metadata) (contents, error) {
	c := contents{volumes: make(map[uint32]volume), all: true}
	for d, err := range m.Devices(ctx) {
		if err != nil {
			c.all = false
			break
		}
		v := volume{blocks: d.MappedBlocks, complete: true}
		c.time = max(c.time, d.CreationTime, d.SnapshottedTime)
		digest := crc64.New(crc64.MakeTable(crc64.ECMA))
		for mapping, err := range m.Mappings(ctx, d.ID) {
			if err != nil {
				v.complete = false
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

// losses returns the volumes that a repair has changed, sorted by id, and whether these are all. It
// leaves out the treeless ones, which had no data. If the old superblock was damaged, it may point
// to wrong trees, so an unreadable mapping need not be a loss.
func losses(before, after contents, treeless map[uint32]bool, superblockGood bool) (lost []Loss, all bool) {
	all = before.all
	for id, was := range before.volumes {
		is, there := after.volumes[id]
		switch {
		case treeless[id]:
		case !there:
			lost = append(lost, Loss{Volume: id, Had: was.blocks, Gone: true})
		case !superblockGood && !was.complete && was.blocks == is.mapped:
			all = false
		case !was.complete || was.digest != is.digest:
			lost = append(lost, Loss{Volume: id, Had: was.blocks, Has: is.mapped})
		}
	}
	slices.SortFunc(lost, func(a, b Loss) int { return cmp.Compare(a.Volume, b.Volume) })
	return lost, all
}
