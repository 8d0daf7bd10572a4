package plan

import (
	"cmp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/metadata"
)

// rows makes the rows and the list of kept volumes.
func (j *judgement) rows() {
	for _, s := range j.snapshots {
		if s.needed && s.Kind != snapshots.KindView {
			j.taken[s.device.ID] = true
		}
	}
	withSnapshot := make(map[string]bool)
	for _, s := range j.snapshots {
		if s.hasDevice {
			withSnapshot[s.device.Name] = true
		}
		j.plan.Rows = append(j.plan.Rows, j.snapshotRow(s))
	}
	for _, d := range j.databases.Devices {
		if !withSnapshot[d.Name] {
			r := Row{Kind: KindDevice, Device: d.Name, VolumeID: d.ID, Bytes: sizeOf(d)}
			r.Becomes, r.Problem, r.Remedy = j.keep(d)
			j.plan.Rows = append(j.plan.Rows, r)
		}
	}
	for _, n := range j.names {
		if n.snapshot == nil {
			j.plan.Rows = append(j.plan.Rows, Row{Key: n.Backend, Name: n.Key, Namespace: n.namespace, Kind: KindName,
				Becomes: LeftOut, Problem: n.problem, Remedy: n.remedy})
		}
		if n.flawed() {
			j.leaveOut(n)
		}
	}
	slices.SortFunc(j.plan.Adoption.Kept, func(a, b metadata.KeptRecord) int {
		return cmp.Compare(a.VolumeID, b.VolumeID)
	})
}

func (j *judgement) snapshotRow(s *snapshot) Row {
	r := Row{Key: s.Key, Kind: strings.ToLower(s.Kind.String()), Problem: s.problem, Remedy: s.remedy}
	if len(s.names) > 0 {
		r.Name, r.Namespace = s.names[0].Key, s.names[0].namespace
	}
	if s.hasDevice {
		r.Device, r.VolumeID, r.Bytes = s.device.Name, s.device.ID, s.size()
	}
	switch {
	case s.needed && s.Kind == snapshots.KindView:
		r.Becomes = AdoptedView
		j.keep(s.device)
	case s.needed:
		r.Becomes = Adopted
	case s.flawed() && s.named:
		r.Becomes = LeftOut
		j.keep(s.device)
	default:
		r.Becomes, r.Problem, r.Remedy = j.keep(s.device)
	}
	return r
}

// leaveOut leaves out a name.
func (j *judgement) leaveOut(n *name) {
	if j.plan.LeaveOut == nil {
		j.plan.LeaveOut = make(metadb.LeaveOut)
	}
	if j.plan.LeaveOut[n.namespace] == nil {
		j.plan.LeaveOut[n.namespace] = make(map[string]bool)
	}
	j.plan.LeaveOut[n.namespace][n.Key] = true
}

// keep keeps the volume of a device without an adopted snapshot, if it is proved to be the
// built-in's.
func (j *judgement) keep(d builtin.Device) (becomes Fate, problem, remedy string) {
	v := j.volumes[d.Name]
	if !v.exists || j.taken[d.ID] {
		return Dropped, "", ""
	}
	if why := j.whyUnproved(d, v); why != "" {
		return Foreign, "is not proved to be the built-in's: " + why,
			"thinsnap leaves it alone: check whether another user of the pool needs it"
	}
	j.taken[d.ID] = true
	j.plan.Adoption.Kept = append(j.plan.Adoption.Kept, metadata.KeptRecord{
		VolumeID: d.ID, Mapped: v.mapped * j.pool.blockBytes, Size: v.end * j.pool.blockBytes, Found: j.now,
	})
	return Kept, "", ""
}

// whyUnproved returns why a volume may not belong to a device, or "". The built-in records a device
// before it creates the volume, and another user of the pool may have a volume with that id.
func (j *judgement) whyUnproved(d builtin.Device, v volume) string {
	isCopy := v.descent != nil && v.descent.Shared
	state := j.databases.IDs[d.ID]
	switch {
	case !v.whole:
		return "the pool has lost its mappings, so it must not be deleted"
	case d.ID >= metadata.FirstInForeign:
		return "its id is one of those that thinsnap uses"
	case d.State == builtin.StateUnknown, d.State == builtin.StateCreating:
		return "its creation was not completed"
	case d.State == builtin.StateFaulty && !isCopy, state == builtin.Faulty && !isCopy:
		return "the device is Faulty, and its volume shares nothing with that of its parent"
	case state == builtin.Free:
		return "the id is free in the built-in's database"
	case v.inherited:
		return "it is a copy of another volume, but the device is recorded as no copy"
	case v.contradicts(j.volumes[d.Parent]) && !isCopy: // if it is a copy, its parent may have been written to since
		return "it shares nothing with the volume of its parent, and has older blocks"
	}
	return ""
}
