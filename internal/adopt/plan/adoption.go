package plan

import (
	"cmp"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/metadata"
)

// adopt fills in the records that the adoption stores.
func (j *judgement) adopt() {
	a := &j.plan.Adoption
	for _, s := range j.snapshots {
		if s.needed {
			a.Snapshots = append(a.Snapshots, j.record(s))
		}
	}
	c := j.options.Config.Pool
	a.Pool = metadata.PoolRecord{
		ID: j.poolID, Mode: metadata.ModeExisting, Name: c.Name, BlockSize: j.pool.blockBytes, Created: j.now, Complete: true,
		Existing: metadata.ExistingPool{
			MappedDevice: pool.DeviceName(c.Existing.Device), UUID: j.pool.uuid, Adopted: j.witnesses(),
		},
	}
	a.Client = metadata.ClientRecord{Number: 1, Proxy: j.options.Proxy, Installation: j.installation}
}

func (j *judgement) record(s *snapshot) metadata.Snapshot {
	labels := maps.Clone(s.Labels)
	delete(labels, builtin.FilesystemLabel)
	if len(labels) == 0 {
		labels = nil
	}
	r := metadata.Snapshot{
		Key: s.Key, Parent: s.Parent, Kind: s.Kind, Labels: labels, Created: s.Created, Updated: s.Updated,
	}
	of := s
	if s.Kind == snapshots.KindView {
		of = s.parent
	}
	r.VolumeID, r.Size, r.Filesystem = of.device.ID, of.size(), of.volume.superblock.Type
	if s.Kind == snapshots.KindCommitted {
		r.Usage = metadata.Usage{
			Bytes: int64(s.volume.mapped * j.pool.blockBytes), Inodes: int64(s.volume.superblock.Inodes),
		}
	}
	return r
}

// noUUID is the UUID of a file system whose UUID was cleared.
const noUUID = "00000000-0000-0000-0000-000000000000"

// witnesses returns the volumes that identify the pool: those of committed snapshots without a
// parent, each with its own file system. A witness cannot be removed before its descendants, so
// those with the most descendants come first.
func (j *judgement) witnesses() []metadata.AdoptedVolume {
	descendants := make(map[*snapshot]int)
	var roots []*snapshot
	for _, s := range j.snapshots {
		if !s.needed {
			continue
		}
		root := s
		for root.parent != nil {
			root = root.parent
		}
		if root.Kind != snapshots.KindCommitted || root.volume.superblock.UUID == noUUID {
			continue
		}
		if descendants[root]++; descendants[root] == 1 {
			roots = append(roots, root)
		}
	}
	slices.SortFunc(roots, func(a, b *snapshot) int {
		return cmp.Or(cmp.Compare(descendants[b], descendants[a]), cmp.Compare(a.Key, b.Key))
	})
	var all []metadata.AdoptedVolume
	for _, s := range roots[:min(len(roots), metadata.MaxAdopted)] {
		all = append(all, metadata.AdoptedVolume{
			VolumeID: s.device.ID, Filesystem: s.volume.superblock.Type, UUID: s.volume.superblock.UUID,
		})
	}
	return all
}
