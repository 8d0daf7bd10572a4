package plan

import (
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/metadata"
)

// The remedies of damaged snapshots.
const (
	remedyRemove = "start containerd, remove it and its descendants there, and stop containerd; or leave it out " +
		"with --leave-out-damaged"
	remedyDescends = "see the remedy of that one, or leave it out with --leave-out-damaged"
	remedyNames    = "restore a backup of containerd's databases, or leave it out with --leave-out-damaged"
)

// judgeSnapshots finds the snapshots with damage of their own.
func (j *judgement) judgeSnapshots() {
	for _, s := range j.snapshots {
		j.judgeRecords(s)
		if s.flawed() {
			continue
		}
		if s.Kind == snapshots.KindView {
			continue // it shows its parent's volume
		}
		j.judgeVolume(s)
		if !s.flawed() {
			s.judgeFilesystem()
		}
	}
	j.judgeAncestry()
}

// judgeRecords judges the records of a snapshot and of its device.
func (j *judgement) judgeRecords(s *snapshot) {
	parentDevice := ""
	if s.parent != nil {
		parentDevice = s.parent.device.Name
	}
	switch err := metadata.CheckKey(s.Key); {
	case err != nil:
		s.find(remedyRemove, "has a key that thinsnap does not accept: %v", err)
	case s.Parent != "" && s.parent == nil:
		s.find(remedyRemove, "has the parent %q, which does not exist", s.Parent)
	case s.parent != nil && s.parent.Kind != snapshots.KindCommitted:
		s.find(remedyRemove, "has the parent %q, which is not committed", s.Parent)
	case s.Kind == snapshots.KindView && s.Parent == "":
		s.find(remedyRemove, "is a View without a parent, for which thinsnap would show an empty file system")
	case s.Kind == snapshots.KindView:
	case !s.hasDevice:
		s.find(remedyRemove, "has no device in the built-in's database")
	case s.device.Parent != parentDevice && (s.parent == nil || s.parent.hasDevice):
		s.find(remedyRemove, "has a device that is recorded as a copy of %q, not of its parent's device %q",
			s.device.Parent, parentDevice)
	}
}

// judgeAncestry finds snapshots that are their own ancestors.
func (j *judgement) judgeAncestry() {
	ends := make(map[*snapshot]bool, len(j.snapshots)) // snapshots whose ancestors form no cycle
	for _, s := range j.snapshots {
		path := make(map[*snapshot]bool)
		at := s
		for ; at != nil && !ends[at] && !path[at]; at = at.parent {
			path[at] = true
		}
		if at != nil && !ends[at] {
			s.find(remedyRemove, "is its own ancestor, or has an ancestor that is")
			continue
		}
		for known := range path {
			ends[known] = true
		}
	}
}

// judgeVolume judges a snapshot's volume by the pool's metadata.
func (j *judgement) judgeVolume(s *snapshot) {
	v, id := s.volume, s.device.ID
	switch {
	case !v.exists:
		s.find(remedyRemove, "has the volume %d, which is not in the pool", id)
	case !v.whole:
		s.find(remedyRemove, "has the volume %d, whose mappings the pool has lost", id)
	case s.size() == 0:
		s.find(remedyRemove, "has a device without a size")
	case v.inherited:
		s.find(remedyRemove, "has the volume %d, which is a copy of another one, and it has no parent", id)
	case s.parent != nil && s.parent.volume.exists && s.size() < s.parent.size():
		s.find(remedyRemove, "has a device of %d bytes, and its parent one of %d: base_image_size was reduced in "+
			"containerd's configuration, and the file system ends beyond the device", s.size(), s.parent.size())
	case v.end > (s.size()+j.pool.blockBytes-1)/j.pool.blockBytes:
		s.find(remedyRemove, "has the volume %d with data up to byte %d, and a device of %d bytes", id,
			v.end*j.pool.blockBytes, s.size())
	case s.parent != nil && s.parent.volume.exists:
		j.judgeDescent(s)
	}
}

// judgeDescent compares the mappings of a volume with those of its parent. The parent was not
// written to since the copy, so each block of the volume is the parent's, or newer than all of the
// parent's.
func (j *judgement) judgeDescent(s *snapshot) {
	v, parent := s.volume, s.parent.volume
	if v.descent == nil {
		return // the parent is damaged, so this snapshot descends from damage
	}
	switch {
	case v.contradicts(parent):
		s.find(remedyRemove, "has the volume %d, which is not a copy of the volume %d of its parent: it has blocks that are "+
			"not its parent's, and too old to be its own", s.device.ID, s.parent.device.ID)
	case !v.descent.Shared && v.superblock.UUID != parent.superblock.UUID:
		s.find(remedyRemove, "has the volume %d, which is not a copy of the volume %d of its parent: they share no block, "+
			"and have different file systems", s.device.ID, s.parent.device.ID)
	}
}

// contradicts returns true if a volume has blocks that a copy of its recorded parent cannot have.
func (v volume) contradicts(parent volume) bool {
	if v.created == 0 { // the times of the pool were reset, so no block is too old
		return false
	}
	return v.descent != nil && v.descent.Own > 0 && v.descent.Oldest < max(v.created, parent.last+1)
}

// judgeFilesystem judges the file system on a volume.
func (s *snapshot) judgeFilesystem() {
	v, sb, label := s.volume, s.volume.superblock, s.Filesystem()
	switch {
	case label != filesystem.Ext4 && label != filesystem.XFS:
		s.find(remedyRemove, "has the file system %q, and thinsnap supports ext4 and xfs only", label)
	case v.unreadable != "":
		s.find(remedyRemove, "has the volume %d without a file system: %s", s.device.ID, v.unreadable)
	case sb.Type != label:
		s.find(remedyRemove, "has an %s where the built-in made an %s", sb.Type, label)
	case s.parent != nil && s.parent.volume.exists && s.parent.Filesystem() != label:
		s.find(remedyRemove, "has an %s, and its parent an %s", sb.Type, s.parent.Filesystem())
	case sb.Bytes > s.size():
		s.find(remedyRemove, "has an %s of %d bytes on a device of %d", sb.Type, sb.Bytes, s.size())
	case s.Kind != snapshots.KindCommitted: // the next mount replays its journal
	case sb.Mountable() != nil:
		s.find(remedyRemove, "has a file system that the host does not mount: %v", sb.Mountable())
	case sb.Damage != "":
		s.find(remedyRemove, "is committed with a damaged %s: %s", sb.Type, sb.Damage)
	case sb.Unclean, sb.NeedsRecovery, v.dirtyLog:
		s.find(remedyRemove, "is committed with an %s that was not unmounted cleanly", sb.Type)
	}
}

// judgeNames finds the names that contradict the built-in's records.
func (j *judgement) judgeNames() {
	for _, n := range j.names {
		s := n.snapshot
		switch {
		case n.Backend == "":
			n.find(remedyNames, "has no name in the built-in, so containerd ignores it")
		case s == nil:
			n.find(remedyRemove, "has the key %q, which the built-in does not have", n.Backend)
		case len(s.names) > 1:
			n.find(remedyNames, "has more than one name in containerd's database")
		case (n.Parent == "") != (s.Parent == ""),
			n.parent != nil && n.parent.snapshot != nil && n.parent.snapshot != s.parent:
			n.find(remedyNames, "has the parent %q in containerd's database, and %q in the built-in's", n.Parent, s.Parent)
		}
	}
}
